"""Benchmarks: ours beside its peers, on the same bytes in the same run. See docs/benchmarks.md."""
