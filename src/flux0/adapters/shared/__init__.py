"""Code that the transports of several HTTP libraries share."""
