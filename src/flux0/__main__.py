"""The entry point of the command line: `python -m flux0`, and the script `flux0-client`."""

from __future__ import annotations

import sys

_EXTRA = {"rich", "typer"}


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


if __name__ == "__main__":
    main()
