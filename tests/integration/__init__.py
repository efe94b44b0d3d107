"""Tests against a real flux0 server."""
