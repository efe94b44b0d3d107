"""The entry point of the command line: `python -m flux0`, and the script `flux0-client`."""

from __future__ import annotations

import os
import sys

_EXTRA = {"rich", "typer"}
_INTERRUPTED, _CLOSED_PIPE = 130, 141  # The exit codes of shells for SIGINT and SIGPIPE.


def main() -> None:
    """Run the command line, or exit with a message if its packages are not installed."""
    try:
        from flux0.cli.app import app  # noqa: PLC0415 - its packages may be missing

        app(prog_name="flux0-client")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _EXTRA:
            raise
        sys.exit(f"the command line needs the package {package}: pip install 'flux0-client[cli]'")
    except KeyboardInterrupt:  # Ctrl+C during the import; later, `app` handles it.
        sys.exit(_INTERRUPTED)
    except (OSError, SystemExit) as end:
        # If the output is a closed pipe, rich and typer replace BrokenPipeError by SystemExit(1).
        cause = end.__context__ if isinstance(end, SystemExit) else end
        if not isinstance(cause, OSError):
            raise
        _discard_output()
        if isinstance(cause, BrokenPipeError):
            sys.exit(_CLOSED_PIPE)
        sys.exit(f"Error: cannot write the output: {cause.strerror}")


def _discard_output() -> None:
    """Redirect standard output to the null device, so that Python can flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
