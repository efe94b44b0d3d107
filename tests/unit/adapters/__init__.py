"""Tests of `flux0.adapters`."""
