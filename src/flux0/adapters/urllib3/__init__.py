"""The transports over urllib3 and over requests. The library requests uses urllib3."""
