"""A flux0 server in memory, for tests."""
