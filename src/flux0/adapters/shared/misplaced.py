"""The objects of HTTP libraries that users pass: in a wrong place they are refused in words."""

from __future__ import annotations

from inspect import isclass, iscoroutinefunction
from typing import Final

from flux0.domain.errors import InvalidArgument

# What goes over a library's own client, by the library, which is its module's and extra's name.
TRANSPORTS: Final = {
    "aiohttp": "AiohttpTransport",
    "httpx": "HttpxTransport",
    "httpx2": "Httpx2Transport",
    "requests": "RequestsTransport",
    "urllib3": "Urllib3Transport",
}


def library_of(value: object) -> str | None:
    """Return the HTTP library that a value's class, or one of its bases, is of."""
    bases = (base.__module__.partition(".")[0] for base in type(value).__mro__)
    return next((library for library in bases if library in TRANSPORTS), None)


def refuse_misplaced(argument: str, value: object, library: str = "") -> None:
    """Refuse a class in place of an instance, and what is of another library than `library`."""
    if isclass(value):
        raise InvalidArgument(argument, f"is the class {value.__name__}: pass {value.__name__}()")
    other = library_of(value)
    if other not in (None, library):
        it, asynchronous = "it", iscoroutinefunction(getattr(value, "send", None))
        if hasattr(value, "handle_request") or hasattr(value, "handle_async_request"):
            asynchronous = not hasattr(value, "handle_request")  # A transport of httpx itself.
            it = f"{other}.{'AsyncClient' if asynchronous else 'Client'}(transport=it)"
        name = "async_client" if asynchronous else "client"
        way = f"{it} as {name}=, or " if other.startswith("httpx") else ""
        problem = f"is of {other}: pass {way}transport=flux0.{TRANSPORTS[other]}({it})"
        raise InvalidArgument(argument, problem)


def shown(transport: object, **given: object) -> str:
    """Return a repr of a transport, with the classes of what it was given."""
    clients = (f"{name}=<{type(it).__name__}>" for name, it in given.items() if it is not None)
    return f"{type(transport).__name__}({', '.join(clients)})"
