"""The transports over `urllib3`, and over `requests`, a library that is built on `urllib3`."""
