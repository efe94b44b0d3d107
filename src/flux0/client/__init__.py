"""The client: `Flux0` and everything that it hands out."""
