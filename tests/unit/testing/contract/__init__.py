"""Tests of the contract, without a transport."""
