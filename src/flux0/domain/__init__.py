"""Pure values and rules of flux0, on the standard library and attrs alone."""
