"""The command line's entry point: `python -m flux0`, and the script `flux0-client`."""

from __future__ import annotations

import os
import sys

_EXTRA = {"rich", "typer"}
_NO_OUTPUT = "Error: cannot write the output"
# The exit codes that shells use for a program that was ended by SIGINT or SIGPIPE.
_INTERRUPTED, _CLOSED_PIPE = 130, 141


def main() -> None:
    if sys.stdout is None:
        sys.exit(f"{_NO_OUTPUT}: it is closed")
    try:
        from flux0.cli.app import app  # noqa: PLC0415 - its packages may be missing

        app(prog_name="flux0-client")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _EXTRA:
            raise
        sys.exit(f"the command line needs the package {package}: pip install 'flux0-client[cli]'")
    except KeyboardInterrupt:  # The user pressed Ctrl-C during an import.
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


if __name__ == "__main__":
    main()
