"""Tests of the published files: the wheel and the source distribution in dist/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
(WHEEL,) = (ROOT / "dist").glob("*.whl")
(SDIST,) = (ROOT / "dist").glob("*.tar.gz")

# Each extra, and a statement that needs it.
EXTRAS = {
    "": "flux0.HttpxTransport()",
    "aiohttp": "flux0.AiohttpTransport()",
    "cli": "import flux0.cli.app",
    "httpx2": "flux0.Httpx2Transport()",
    "mcp": "import flux0.cli.mcp_server",
    "opentelemetry": "import flux0.adapters.opentelemetry",
    "redis": "flux0.RedisTurnStore.from_url('redis://127.0.0.1')",
    "requests": "flux0.RequestsTransport()",
    "urllib3": "flux0.Urllib3Transport()",
    "all": "import flux0.cli.app, flux0.testing",
}
PYTHONS = [f"3.{minor}" for minor in range(10, 15)]


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables of this test environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COVERAGE", "PYTHON", "PYTEST", "TOX", "VIRTUAL_ENV"))
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_wheel_contains_only_the_packages() -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {folder.name for folder in (ROOT / "src").iterdir()}
    assert {"flux0/py.typed", "flux0/.agents/skills/flux0/SKILL.md"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {Path(name).suffix for name in names if name.startswith("flux0")} >= {".py", ".typed"}


def test_source_distribution_has_the_licences_of_vendored_files() -> None:
    with tarfile.open(SDIST) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    folder = "examples/web/static/vendor/"
    vendored = {name for name in names if name.startswith(folder) and name.endswith(".js")}
    assert vendored
    assert {name.replace(".js", ".LICENSE") for name in vendored} <= set(names)


def test_build_is_reproducible(tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", tmp_path, ROOT)
    assert built.returncode == 0, built.stdout
    for path in (WHEEL, SDIST):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.timeout(900)
def test_source_distribution_can_run_its_tests_and_build_its_documentation(
    tmp_path: Path,
) -> None:
    with tarfile.open(SDIST) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    ran = run(sys.executable, "-m", "tox", "run", "-e", "docs,newest", cwd=source)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("python", PYTHONS)
def test_wheel_with_one_extra_can_be_installed_and_used(
    python: str, extra: str, tmp_path: Path
) -> None:
    uv = shutil.which("uv")
    found = run(uv, "python", "find", "--python-preference", "only-system", python)
    if found.returncode != 0 or (python == "3.10" and extra == "httpx2"):
        return  # This Python is not installed, or it is too old for httpx2.
    interpreter = tmp_path / "bin" / "python"
    name = f"flux0-client[{extra}]" if extra else "flux0-client"
    for command in (
        (uv, "venv", "--quiet", "--python", found.stdout.strip(), tmp_path),
        (uv, "pip", "install", "--python", interpreter, f"{name} @ {WHEEL.as_uri()}"),
        (interpreter, "-W", "error", "-c", f"import flux0; {EXTRAS[extra]}"),
    ):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
