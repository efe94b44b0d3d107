"""Tests of `flux0.runtime`."""
