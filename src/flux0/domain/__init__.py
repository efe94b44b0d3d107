"""The values and rules of flux0. They depend only on the standard library and attrs."""
