"""Tests of the fake server and its agents."""
