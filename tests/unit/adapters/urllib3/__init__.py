"""Tests of `flux0.adapters.urllib3`."""
