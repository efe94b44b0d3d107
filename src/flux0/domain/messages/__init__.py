"""Building the messages of a turn from its chunk events."""
