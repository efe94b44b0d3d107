"""Tests of `flux0.testing` and the pytest plugin."""
