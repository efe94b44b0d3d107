"""Cassettes: files of recorded exchanges, and the transports that record and replay them."""
