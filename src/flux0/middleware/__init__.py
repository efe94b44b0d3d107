"""Composable policy: each layer a flow around the next, `(request, send) -> Flow[Response]`."""
