"""The operations of the API. Each is a flow, which sync and async code share."""
