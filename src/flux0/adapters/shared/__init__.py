"""Code that several transports share."""
