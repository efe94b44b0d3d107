"""Tests for the fake server and its agents."""
