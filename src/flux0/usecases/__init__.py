"""The operations of the API. Each operation returns a flow, which sync or async code can run."""
