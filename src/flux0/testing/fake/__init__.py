"""The in-memory server."""
