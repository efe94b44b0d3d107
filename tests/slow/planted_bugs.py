"""Plants the bugs of `planted_bugs.txt`, one at a time: the nearest test file should detect each.

With each bug, it runs tests on a copy of `src`: first the nearest test file, then its folder, then
all unit tests and the test of documented numbers, until a test fails. It prints the bugs that the
nearest file does not detect. Arguments select modules, such as `domain/retrying` or
`flux0_pytest/__init__`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from support.test_files import SRC, TESTS, modules_with_code, name_of, nearest, path_of

BUGS = Path(__file__).with_suffix(".txt")
NUMBERS = TESTS.parent / "docs/test_numbers.py"
STEPS = ("nearest file", "folder", "all unit tests")
MIN_PERCENT = {"nearest file": 75, "detected": 95}


def bugs() -> Iterator[tuple[str, str, str]]:
    """Yield the module, the correct code and the wrong code of each bug."""
    module = ""
    for block in BUGS.read_text("utf-8").split("\n\n"):
        lines = block.strip("\n").splitlines()
        if lines[0].startswith("# "):
            module = lines.pop(0)[2:]
        correct, wrong = ([line[1:] for line in lines if line[0] == sign] for sign in "-+")
        yield module, "\n".join(correct), "\n".join(wrong)


def problems() -> list[str]:
    """Return a line for each module without a bug, and for each bug that cannot be planted."""
    planted = {module for module, _, _ in bugs()}
    lines = [f"{each}: no bug" for each in map(name_of, modules_with_code()) if each not in planted]
    for module, correct, wrong in bugs():
        path = path_of(module)
        count = path.read_text("utf-8").count(correct) if path.exists() else 0
        if count != 1 or correct == wrong:
            lines.append(f"{module}: the code exists {count} times, not once:\n{correct}")
    return lines


def plant(copy: Path, module: str, correct: str, wrong: str) -> None:
    """Replace the correct code in the module's copy."""
    path = copy / path_of(module).relative_to(SRC.parent)
    path.write_text(path.read_text("utf-8").replace(correct, wrong), "utf-8")


def detected_by(copy: Path, module: str) -> str | None:
    """Return the step in which a test fails with the code in `copy`."""
    file = nearest(path_of(module))
    for step, targets in zip(STEPS, ((file,), (file.parent,), (TESTS, NUMBERS)), strict=True):
        processes = "0" if targets == (file,) else "2"
        # After a timeout, end the process: the test's threads may wait forever.
        timeout = "--timeout=60", "--timeout-method=thread"
        options = ["-qx", "-n", processes, *timeout, "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *map(str, targets)],
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            return step
    return None


def main(*modules: str) -> None:
    if lines := problems():
        sys.exit("\n".join(lines))
    counts: Counter[str] = Counter()
    for module, correct, wrong in bugs():
        if modules and module not in modules:
            continue
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "src"
            shutil.copytree(SRC.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
            plant(copy, module, correct, wrong)
            step = detected_by(copy, module)
        counts["bugs"] += 1
        counts["detected"] += step is not None
        counts["nearest file"] += step == STEPS[0]
        if step != STEPS[0]:
            print(f"{module}, {step or 'not detected'}:\n-{correct}\n+{wrong}\n", flush=True)
    print(dict(counts))
    if any(100 * counts[name] < least * counts["bugs"] for name, least in MIN_PERCENT.items()):
        sys.exit(f"too few bugs are detected; the least percentages are {MIN_PERCENT}")


if __name__ == "__main__":
    main(*sys.argv[1:])
