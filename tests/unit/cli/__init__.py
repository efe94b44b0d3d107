"""Tests of `flux0.cli`."""
