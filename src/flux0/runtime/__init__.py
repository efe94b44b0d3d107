"""Event loops, threads, processes and time."""
