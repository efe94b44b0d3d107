"""Reports line coverage like `coverage report`, without the Redis adapter if no server was found.

The number of lines that tests of the adapter cover is meaningless if these tests were skipped.
"""

from __future__ import annotations

import subprocess
import sys

from support.programs import REDIS, find

ADAPTER = "*/flux0/adapters/redis/*"


def main() -> int:
    command = [sys.executable, "-m", "coverage", "report"]
    if find(REDIS) is not None:
        return subprocess.run(command, check=False).returncode
    done = subprocess.run([*command, f"--omit={ADAPTER}"], check=False)
    print(f"{REDIS} is not installed: {ADAPTER} was not tested, and does not count as missing.")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
