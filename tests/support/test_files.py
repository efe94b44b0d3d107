"""Where the tests of each module are: in the file with its name, or in a file of `ELSEWHERE`.

`python tests/support/test_files.py` checks this, and prints the modules without a test file.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

SRC, TESTS = (Path(__file__).parents[2] / name for name in ("src/flux0", "tests/unit"))

# Modules without a test file of their own, by the file that tests them. The names of files are
# relative to `tests/unit`, and the names of modules are relative to `src/flux0` or to `src`.
ELSEWHERE: Mapping[str, str] = {
    # These modules only declare constants and names.
    "test_import.py": "__init__ _version models",
    "test_old_import_name.py": """
        flux0_client/__init__ flux0_client/httpclient flux0_client/models/__init__
        flux0_client/utils""",
    "testing/test_pytest_plugin.py": "flux0_pytest/__init__",
    # The contract of transports runs over these modules.
    "adapters/aiohttp/test_transport.py": "adapters/aiohttp/connection adapters/shared/limits",
    "adapters/httpx/test_transport.py": "adapters/httpx/body",
    "adapters/httpx/test_connections.py": "adapters/httpx/async_streams adapters/httpx/sockets",
    "adapters/httpx/test_clients.py": "adapters/httpx/library",
    "adapters/httpx/test_pools.py": "adapters/httpx/cancellation",
    "adapters/urllib3/test_transport.py": "adapters/urllib3/body adapters/urllib3/http_response",
    # The contract is tested with each transport, and with broken transports.
    "testing/contract/test_checks.py": """
        testing/contract/bodies testing/contract/connecting testing/contract/connections
        testing/contract/harness testing/contract/heads testing/contract/responses
        testing/contract/waiting""",
    # These modules are steps of one algorithm, whose whole result the tests check.
    "adapters/json/test_codec.py": """
        adapters/json/code_generation adapters/json/plain adapters/json/structuring""",
    "domain/messages/test_accumulator.py": """
        domain/messages/finalizing domain/messages/tool_calls""",
    "domain/test_stored_models.py": """
        client/json_form domain/enums domain/extensible""",
    "usecases/test_usecases.py": "usecases/agents usecases/call usecases/sessions",
    # Redis and commands run as processes.
    "adapters/redis/test_redis_faults.py": "adapters/redis/outage adapters/redis/subscription",
    "adapters/redis/test_redis_store.py": """
        adapters/redis/commands adapters/redis/followed adapters/redis/lease
        adapters/redis/process adapters/redis/published adapters/redis/scripts
        adapters/redis/store adapters/redis/worker""",
    "turns/test_turn_store_contract.py": "testing/contract/turn_stores turn_store",
    "cli/test_app.py": """
        __main__ cli/chat cli/choices cli/client cli/descriptions cli/listing
        cli/options cli/queries""",
    # Users notice these modules only in the objects of others.
    "middleware/test_observing.py": "observers",
    "domain/test_errors.py": "domain/api_errors domain/background_errors",
    "client/test_find_turn.py": "usecases/stored_turns",
    "client/test_layers.py": "flows middleware/checked",
    "client/test_transports.py": "adapters/shared/misplaced",
    "client/test_flux0.py": "client/caller domain/uncopyable",
    "client/test_options_of_calls.py": "usecases/options",
    "testing/fake/test_server.py": "testing/fake/operations testing/fake/validation",
    "testing/fake/test_transport.py": "testing/fake/body testing/fake/calls",
    "testing/fake/test_turn.py": "testing/fake/clock",
}


def path_of(name: str) -> Path:
    """Return the path of a module, from its name relative to `src/flux0` or to `src`."""
    folder = SRC.parent if name.startswith(("flux0_client/", "flux0_pytest/")) else SRC
    return folder / f"{name}.py"


def name_of(module: Path) -> str:
    folder = SRC if module.is_relative_to(SRC) else SRC.parent
    return module.relative_to(folder).with_suffix("").as_posix()


def nearest(module: Path) -> Path:
    """Return the path of the test file for a module in `src`."""
    name = name_of(module)
    files = [file for file, names in ELSEWHERE.items() if name in names.split()]
    own = Path(name).with_name(f"test_{module.stem}.py")
    return TESTS / (files[0] if files else own)


def modules_with_code() -> list[Path]:
    """Return the modules in `src` with a function that is neither abstract nor empty."""
    return [
        path
        for path in sorted(SRC.parent.rglob("*.py"))
        if any(map(_has_code, ast.walk(ast.parse(path.read_bytes()))))
    ]


def _has_code(node: ast.AST) -> bool:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    # An abstract or empty function has only a docstring or `...`.
    return not all(
        isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in node.body
    )


def problems() -> list[str]:
    """Return a line for each module without a test file, and for each wrong line of `ELSEWHERE`."""
    modules = {path for path in SRC.rglob("*.py") if path.name != "__init__.py"}
    modules.update(modules_with_code())
    missing = [f"{path}: no {nearest(path)}" for path in modules if not nearest(path).exists()]
    listed = [path_of(name) for names in ELSEWHERE.values() for name in names.split()]
    gone = [f"ELSEWHERE: no {path}" for path in listed if not path.exists()]
    own = [
        path for path in listed if (TESTS / name_of(path)).with_name(f"test_{path.name}").exists()
    ]
    return sorted([*missing, *gone, *(f"ELSEWHERE: {path} has its own test file" for path in own)])


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or None)
