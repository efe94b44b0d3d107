"""Tests of `flux0.middleware`."""
