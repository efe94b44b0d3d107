"""Background turns: turns that are read to their end without a reader of their relays."""
