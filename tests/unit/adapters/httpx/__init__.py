"""Tests for the transports over httpx and httpx2."""
