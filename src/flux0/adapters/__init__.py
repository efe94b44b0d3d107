"""The adapters implement the ports: transports, the SSE parser, the JSON codec, OpenTelemetry."""
