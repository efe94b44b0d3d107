"""Tests of `flux0.client`."""
