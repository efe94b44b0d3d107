"""The command line's entry point: `python -m flux0`, and the script `flux0-client`.

This module imports only modules that Python loads when it starts. So `main` runs at once, and
handles Ctrl-C while it imports all other modules.
"""

from __future__ import annotations

import os
import sys

# `TYPE_CHECKING` is defined here, because importing `typing.TYPE_CHECKING` makes each command start
# later. Type checkers treat any variable with this name as True.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typer import Typer

_EXTRA = {"rich", "typer"}
_NO_OUTPUT = "Error: cannot write the output"
# The exit codes that shells use for a program that was ended by SIGINT or SIGPIPE.
_INTERRUPTED, _CLOSED_PIPE = 130, 141


def main() -> None:
    if sys.stdout is None:
        sys.exit(f"{_NO_OUTPUT}: it is closed")
    sys.argv[1:] = map(_decoded, sys.argv[1:])
    try:
        app = _import_app()
        app(prog_name="flux0-client")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _EXTRA:
            raise
        sys.exit(f"the command line needs the package {package}: pip install 'flux0-client[cli]'")
    # The user pressed Ctrl-C before `_import_app` had set its own handler for Ctrl-C.
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except (OSError, SystemExit) as end:
        # If stdout is a closed pipe, rich and typer catch the BrokenPipeError and raise
        # SystemExit(1). The attribute `__context__` of the SystemExit is the BrokenPipeError.
        cause = end.__context__ if isinstance(end, SystemExit) else end
        if not isinstance(cause, OSError):
            raise
        # At exit, Python flushes stdout, which raises another OSError if stdout cannot be written.
        # Therefore, redirect stdout to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(cause, BrokenPipeError):
            sys.exit(_CLOSED_PIPE)
        sys.exit(f"{_NO_OUTPUT}: {cause.strerror}")
    finally:
        _ignore_ctrl_c()


def _decoded(argument: str) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        # The system's encoding, such as ASCII, could not decode the argument, which is in UTF-8.
        return os.fsencode(argument).decode(errors="surrogateescape")
    return argument


def _ignore_ctrl_c() -> None:
    """Ignore Ctrl-C until the process has ended.

    Python removes its signal handlers while it exits. If the user presses Ctrl-C again at this
    time, the process's exit code changes.
    """
    signal = sys.modules.get("signal")
    # `sys.modules` has no module `signal` if Ctrl-C has interrupted the import of `signal`.
    if signal is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _import_app() -> Typer:
    """Import and return the command line. Ctrl-C during the import ends the process at once.

    A `KeyboardInterrupt` does not always end the process: Python ignores exceptions in some
    functions that it calls during an import.
    """
    from signal import SIGINT, default_int_handler, getsignal, signal  # noqa: PLC0415 - slow

    before = getsignal(SIGINT)
    # A shell disables Ctrl-C for background programs. Keep Ctrl-C disabled in this case.
    if before is default_int_handler:
        signal(SIGINT, _exit_at_once)
    try:
        from flux0.cli.app import app  # noqa: PLC0415 - slow; its packages may be missing
    finally:
        signal(SIGINT, before)
    return app


def _exit_at_once(_number: int, _frame: object) -> None:
    os._exit(_INTERRUPTED)  # pragma: no cover - the process ends without saving the coverage


if __name__ == "__main__":
    main()
