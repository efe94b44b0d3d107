"""Tests for the contract, without a transport."""
