"""Limits of connections and responses that apply to all HTTP libraries."""

from __future__ import annotations

from typing import Final

# A turn holds its connection while the agent thinks, so a busy process needs many connections.
MAX_CONNECTIONS: Final = 1000
# The number of idle connections that a pool keeps for later requests.
MAX_IDLE_CONNECTIONS: Final = 100
# Seconds after which an idle connection is not reused. A flux0 server closes it after 5 s, and a
# NAT may drop it without notice.
MAX_IDLE_SECONDS: Final = 4.0
# The number of received bytes that are not content: response heads, or the framing of a body.
MAX_OVERHEAD_BYTES: Final = 256 * 1024
# The content codings that flux0 decodes with limits.
ACCEPT_ENCODING: Final = "gzip, deflate"
