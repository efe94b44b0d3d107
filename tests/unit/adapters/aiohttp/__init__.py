"""Tests for the aiohttp adapter."""
