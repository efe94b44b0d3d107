"""How the chunks of a turn become its messages."""
