"""Reports line coverage like `coverage report`, without untested modules if Redis was not found.

Without a server, the tests of the Redis adapter are skipped. The contract's tests of stores that
several processes share are skipped, too, because only the Redis store can pass these tests.
"""

from __future__ import annotations

import subprocess
import sys

from support.programs import REDIS, find

UNTESTED = ("*/flux0/adapters/redis/*", "*/flux0/testing/contract/turn_stores.py")


def main() -> int:
    command = [sys.executable, "-m", "coverage", "report"]
    if find(REDIS) is not None:
        return subprocess.run(command, check=False).returncode
    done = subprocess.run([*command, f"--omit={','.join(UNTESTED)}"], check=False)
    untested = " and ".join(UNTESTED)
    print(f"{REDIS} is not installed: the coverage of {untested} is not required.")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
