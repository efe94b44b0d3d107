"""Adapters: the transports over HTTP libraries, the SSE parser, the JSON codec, OpenTelemetry."""
