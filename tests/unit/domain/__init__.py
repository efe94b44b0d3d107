"""Tests of `flux0.domain`."""
