"""The command line. It uses only the public client, and needs the extra `cli`."""
