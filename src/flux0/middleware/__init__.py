"""Middleware: functions `(request, send) -> Flow[Response]` that run around each request."""
