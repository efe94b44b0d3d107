"""The command `flux0-client`, which needs the extra `cli`."""
