"""The operations of the API. Each operation returns a flow, a generator that a driver runs."""
