"""Tests of `flux0.usecases`."""
