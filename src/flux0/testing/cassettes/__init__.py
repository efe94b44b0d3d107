"""Recorded exchanges: writing them, and answering from them."""
