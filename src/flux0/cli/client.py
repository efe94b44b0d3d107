"""The client of a command, and the exit codes of its failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from flux0 import Flux0, Flux0Error
from flux0.cli.descriptions import describe_error
from flux0.cli.options import common_options
from flux0.middleware.logging import TURN_ENDED
from flux0.models import InvalidArgument

if TYPE_CHECKING:
    from flux0.testing import FakeTransport

FAILED: Final = 1
_WRONG_USE: Final = 2
_INTERRUPTED: Final = 130


@contextmanager
def open_client(
    context: typer.Context,
    explain: Callable[[Flux0Error], str] = describe_error,
    idle_timeout: int | None = None,
    *,
    demo: bool = False,
) -> Generator[Flux0, None, None]:
    """Open a command's client for a `with` block. Print errors, and exit with their exit codes."""
    options, limit = common_options(context), idle_timeout and idle_timeout * 1000
    logger = logging.getLogger("flux0")
    logger.addFilter(_is_logged)
    try:
        with exit_codes(explain):
            transport = real_time_demo() if demo else None
            with options.client(transport=transport, stream_idle_timeout_ms=limit) as client:
                yield client
    finally:
        logger.removeFilter(_is_logged)


def _is_logged(record: logging.LogRecord) -> bool:
    # The command itself prints the error of a failed turn.
    return record.msg is not TURN_ENDED


@contextmanager
def exit_codes(explain: Callable[[Flux0Error], str]) -> Generator[None, None, None]:
    """Print a `Flux0Error` that the `with` block raises, and exit with the error's exit code."""
    from flux0.cli.output import escape_unencodable, print_problem  # noqa: PLC0415 - loads rich

    escape_unencodable()
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except Flux0Error as error:
        print_problem(explain(error))
        code = _WRONG_USE if isinstance(error, InvalidArgument) else FAILED
        raise typer.Exit(code) from error


def real_time_demo() -> FakeTransport:
    from flux0.cli.demo_agent import demo_transport  # noqa: PLC0415 - only the demo needs it
    from flux0.testing import FakeClock  # noqa: PLC0415

    return demo_transport(FakeClock(sleep=time.sleep, follow=time.time))
