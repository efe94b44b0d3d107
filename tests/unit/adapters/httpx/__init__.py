"""Tests of the transports over httpx and httpx2."""
