"""Middleware: each layer is a flow around the next, `(request, send) -> Flow[Response]`."""
