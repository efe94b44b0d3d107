"""The transports over urllib3 and over requests, which is built on urllib3."""
