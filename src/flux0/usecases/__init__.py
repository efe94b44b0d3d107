"""What the API can do, each thing written once as a flow. No I/O and no HTTP library here."""
