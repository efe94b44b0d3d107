"""Recording or replaying, as the mode says and whether there is a cassette."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from flux0.domain.errors import InvalidArgument
from flux0.ports import AsyncTransport, Transport
from flux0.testing.cassettes.recording import RecordingTransport
from flux0.testing.cassettes.replaying import Matching, ReplayTransport
from flux0.testing.cassettes.scrubbing import Scrub
from flux0.testing.fake.calls import Call

CassetteMode: TypeAlias = Literal["once", "none", "all"]


def cassette(
    path: str | PathLike[str],
    transport: Callable[[], Transport | AsyncTransport] | None = None,
    *,
    mode: CassetteMode | None = None,
    matching: Matching = "strict",
    match: Callable[[Call], object] | None = None,
    scrub: Scrub | None = None,
) -> RecordingTransport | ReplayTransport:
    """Return a transport that replays a cassette, or one that records it.

    Args:
        path: the cassette.
        transport: returns what sends the requests when recording; by default `HttpxTransport`.
        mode: "once" replays a cassette that exists, and records one that does not; "none" only
            replays; "all" only records. The default is "none" where the environment variable `CI`
            is set, and "once" elsewhere.
        matching: see `ReplayTransport`.
        match: see `ReplayTransport`.
        scrub: see `ReplayTransport` and `RecordingTransport`.

    Raises:
        CassetteError: there is no such file and none is recorded, or this version cannot read it.
    """
    if mode is None:
        mode = "none" if os.environ.get("CI", "").lower() not in {"", "0", "false"} else "once"
    elif mode not in get_args(CassetteMode):
        raise InvalidArgument("mode", f'must be "once", "none" or "all", not {mode!r}')
    if mode == "none" or (mode == "once" and Path(path).exists()):
        return ReplayTransport(path, matching, match=match, scrub=scrub)
    return RecordingTransport((transport or _over_httpx)(), path, scrub=scrub)


def _over_httpx() -> Transport:
    from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

    return HttpxTransport()
