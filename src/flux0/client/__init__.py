"""The client: `Flux0`, its resources, streams and conversations, and the code for its I/O."""
