"""The protocols of HTTP clients. The generated client had them in a module of this name."""

from flux0.adapters.httpx import AsyncHttpClient, HttpClient

__all__ = ["AsyncHttpClient", "HttpClient"]
