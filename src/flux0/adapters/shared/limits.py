"""What holds over every library that connections are made with."""

from __future__ import annotations

from typing import Final

# A turn holds its connection for as long as the agent thinks, so a busy process needs many.
MAX_CONNECTIONS: Final = 1000
# So many are kept for the next requests.
MAX_IDLE_CONNECTIONS: Final = 100
# Seconds after which a connection that nobody uses is not used again: a flux0 server closes it
# after five, and a NAT on the way may have forgotten it.
MAX_IDLE_SECONDS: Final = 4.0
# The bytes that may come beside the content: interim answers and a head, or framing.
MAX_OVERHEAD_BYTES: Final = 256 * 1024
# What is undone here, with limits, and no more.
ACCEPT_ENCODING: Final = "gzip, deflate"
