"""Tests of the aiohttp adapter."""
