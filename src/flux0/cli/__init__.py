"""The command line, a user of the client like any other; needs the extra `cli`."""
