"""Benchmarks of flux0 and other libraries, with the same bytes in one run."""
