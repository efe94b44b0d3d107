"""Services for event loops, threads, forked processes and time."""
