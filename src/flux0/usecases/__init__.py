"""The API operations. Each operation returns a flow, a generator that a driver runs."""
