"""Errors for HTTP libraries that are not installed, and for HTTP clients in a wrong argument."""

from __future__ import annotations

from inspect import isclass, iscoroutinefunction
from typing import Any, Final

from flux0.domain.errors import InvalidArgument, MissingDependency

# `TRANSPORTS` maps the module of each HTTP library to the name of its transport class in flux0. The
# extra of flux0 that installs a library has the library's name, except for `httpx`, which needs no
# extra.
TRANSPORTS: Final = {
    "aiohttp": "AiohttpTransport",
    "httpx": "HttpxTransport",
    "httpx2": "Httpx2Transport",
    "requests": "RequestsTransport",
    "urllib3": "Urllib3Transport",
}


def not_installed(library: str) -> MissingDependency:
    package = "flux0-client" if library == "httpx" else f"flux0-client[{library}]"
    return MissingDependency(
        f"{TRANSPORTS[library]} needs the package {library}: pip install '{package}'"
    )


def library_of(value: object) -> str | None:
    bases = (base.__module__.partition(".")[0] for base in type(value).__mro__)
    return next((library for library in bases if library in TRANSPORTS), None)


def refuse_misplaced(argument: str, value: object, library: str = "") -> None:
    """Raise `InvalidArgument` if `value` is a class, or an object of another HTTP library.

    Args:
        argument: The argument, such as `client`.
        value: The value that was passed.
        library: The HTTP library whose objects are allowed. The empty string allows no library.
    """
    if isclass(value):
        raise InvalidArgument(argument, f"is the class {value.__name__}: pass {value.__name__}()")
    other = library_of(value)
    if other not in (None, library):
        it, is_async = "it", iscoroutinefunction(getattr(value, "send", None))
        if hasattr(value, "handle_request") or hasattr(value, "handle_async_request"):
            # `value` is a transport of httpx, which flux0 cannot use directly. The error message
            # suggests a client with this transport.
            is_async = not hasattr(value, "handle_request")
            it = f"{other}.{'AsyncClient' if is_async else 'Client'}(transport=it)"
        name = "async_client" if is_async else "client"
        way = f"{it} as {name}=, or " if other.startswith("httpx") else ""
        problem = f"is an object of {other}: pass {way}transport=flux0.{TRANSPORTS[other]}({it})"
        raise InvalidArgument(argument, problem)


def check_type(argument: str, value: object, expected: type[Any]) -> None:
    """Raise `InvalidArgument` if `value` is neither None nor an instance of `expected`."""
    refuse_misplaced(argument, value, expected.__module__.partition(".")[0])
    if value is not None and not isinstance(value, expected):
        actual = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        raise InvalidArgument(argument, f"must be a {expected.__name__}, not a {actual}")


def transport_repr(transport: object, **clients: object) -> str:
    passed = (f"{name}=<{type(it).__name__}>" for name, it in clients.items() if it is not None)
    return f"{type(transport).__name__}({', '.join(passed)})"
