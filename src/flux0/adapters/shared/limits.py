"""Limits of connections and responses that apply to all HTTP libraries."""

from __future__ import annotations

from typing import Final

# The largest number of connections in one connection pool. A turn uses its connection until the
# agent has finished, so a process with many turns needs many connections.
MAX_CONNECTIONS: Final = 1000
# The largest number of idle connections that a connection pool keeps for later requests.
MAX_IDLE_CONNECTIONS: Final = 100
# A connection that was idle for `MAX_IDLE_SECONDS` is not reused. A flux0 server closes an idle
# connection after 5 s, and a NAT router can drop a connection without closing it.
MAX_IDLE_SECONDS: Final = 4.0
# The largest number of received bytes of a response that are not content. This limit applies to the
# response head, and separately to the chunk framing of the body.
MAX_OVERHEAD_BYTES: Final = 256 * 1024
# The largest number of bytes for one read of a socket; httpcore uses the same number. Larger reads
# save few system calls, because a network delivers fewer bytes at a time.
READ_BYTES: Final = 64 * 1024
# If a request has more than `LARGE_REQUEST_BYTES`, flux0 also reads while it sends the request,
# because the server can reject the request before it has received the whole request. A smaller
# request mostly fits into the buffers of the system and asyncio (64 KiB), so sending it needs no
# wait.
LARGE_REQUEST_BYTES: Final = 64 * 1024
# The request header `Accept-Encoding` lists the content codings that the module `decompression`
# supports.
ACCEPT_ENCODING: Final = "gzip, deflate"
