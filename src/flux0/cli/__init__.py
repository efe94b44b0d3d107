"""The command `flux0-client`, which needs the packages of the extra `cli`."""
