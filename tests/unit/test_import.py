"""`import flux0`: imported modules, lazy names and missing libraries."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files

import pytest

import flux0
from flux0 import models

TRANSPORTS = {
    "AiohttpTransport": ("aiohttp", "flux0-client[aiohttp]"),
    "Httpx2Transport": ("httpx2", "flux0-client[httpx2]"),
    "HttpxTransport": ("httpx", "flux0-client"),
    "RequestsTransport": ("requests", "flux0-client[requests]"),
    "Urllib3Transport": ("urllib3", "flux0-client[urllib3]"),
}

# HTTP libraries, event loops and other modules that are slow to import.
NOT_LOADED = [
    *("aiohttp", "httpx", "httpx2", "httpcore", "requests", "urllib3", "h11", "http.client"),
    *("anyio", "asyncio", "trio", "socket", "ssl", "concurrent.futures"),
    *("cattrs", "logging", "email", "opentelemetry", "rich", "typer", "urllib.parse"),
    *("flux0.adapters.json", "flux0.adapters.ui", "flux0.cli", "flux0.testing"),
]


def printed(code: str) -> list[str]:
    """Run code in a new interpreter and return the printed lines."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_import_flux0_imports_no_http_library_or_slow_module() -> None:
    loaded = printed(
        "import sys\n"
        "before = set(sys.modules)\n"  # A site configuration may import some modules.
        "from flux0 import Flux0, EventType\n"
        f"print(*[name for name in {NOT_LOADED} if name in sys.modules and name not in before])"
    )

    assert loaded == [""]


def test_relay_imports_only_the_format_that_it_uses() -> None:
    loaded = printed(
        "import sys\n"
        "from flux0 import BackgroundTurns, Flux0\n"
        "from flux0.testing import FakeTransport\n"
        "fake, turns = FakeTransport('Hi'), BackgroundTurns()\n"
        "conversation = Flux0(transport=fake).conversation(agent=fake.agent_id)\n"
        "print(len([*conversation.send('Hi').relay(), *turns.start(conversation, 'Hi').relay()]))\n"
        "print(*[name for name in sys.modules if name.startswith('flux0.adapters.ui')])"
    )

    assert int(loaded[0]) >= 2
    assert loaded[1] == ""


def test_every_name_in_all_exists() -> None:
    assert {name for name in flux0.__all__ if name.endswith("Transport")} == TRANSPORTS.keys()
    for name in set(flux0.__all__) - TRANSPORTS.keys():
        assert getattr(flux0, name) is not None, name
    assert dir(flux0) == sorted(flux0.__all__)


def test_transports_are_imported_on_first_use() -> None:
    lines = printed(
        "import sys, flux0\n"
        "print(flux0.models.AgentDTO.__name__, 'httpx' in sys.modules)\n"
        "from flux0 import HttpxTransport\n"
        "print(HttpxTransport.__module__, 'httpx' in sys.modules)\n"
        "HttpxTransport()\n"
        "print('httpx' in sys.modules, 'httpx2' in sys.modules)"
    )

    assert lines == ["Agent False", "flux0.adapters.httpx.transport False", "True False"]


def test_unknown_attribute_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Flux1'"):
        flux0.Flux1  # noqa: B018 - the access raises
    assert not hasattr(flux0, "transport")


def test_transports_without_their_libraries_say_what_to_install() -> None:
    """The package can be inspected then."""
    libraries = [library for library, _ in TRANSPORTS.values()]
    inspected, documented, *lines = printed(
        "import sys\n"
        f"for name in {[*libraries, 'opentelemetry']}:\n"
        "    sys.modules[name] = None\n"
        "from flux0 import *\n"
        "import flux0, inspect, pydoc\n"
        "print(len(inspect.getmembers(flux0)) == len(flux0.__all__))\n"
        "print('AiohttpTransport' in pydoc.render_doc(flux0))\n"
        f"for name in {list(TRANSPORTS)}:\n"
        "    kind = getattr(flux0, name)\n"
        "    try:\n"
        "        kind()\n"
        "    except flux0.MissingDependency as error:\n"
        "        print(kind.__module__, kind.__name__, type(error.__cause__).__name__, error)"
    )

    assert (inspected, documented) == ("True", "True")
    assert lines == [
        # The classes over httpx and httpx2 import their library when they are instantiated.
        f"{'flux0.adapters.httpx.transport' if library.startswith('httpx') else 'flux0'} {name} "
        f"ModuleNotFoundError {name} needs the package {library}: pip install '{package}'"
        for name, (library, package) in TRANSPORTS.items()
    ]


def test_missing_module_of_another_name_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flux0.client.json_form", None)
    with pytest.raises(ModuleNotFoundError, match="json_form"):
        flux0.__getattr__("from_dict")


def test_flux0_has_all_names_of_flux0_models() -> None:
    # pytest adds names such as "@pytest_ar" to modules of installed plugins.
    names = {name for name in dir(models) if name.isidentifier() and name[0] != "_"}

    assert [name for name in names if not name[0].isupper()] == []
    assert names < set(flux0.__all__)
    for name in names:
        assert getattr(flux0, name) is getattr(models, name)


def test_type_checkers_know_every_name() -> None:
    tree = ast.parse(inspect.getsource(flux0))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.asname for node in imports for alias in node.names if alias.asname}

    assert names | {name for name in dir(models) if name[0] != "_"} == set(flux0.__all__)


def test_version_equals_distribution_version_and_py_typed_exists() -> None:
    assert flux0.__version__ == version("flux0-client")
    assert files("flux0").joinpath("py.typed").is_file()
