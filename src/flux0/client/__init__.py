"""The client: `Flux0`, its resources, streams and conversations, and the drivers of flows."""
