"""Tests of cassettes: recording, replaying and their files."""
