"""The operations of the API, each written once as a flow, without I/O and HTTP libraries."""
