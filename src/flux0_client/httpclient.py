"""The protocols of HTTP clients, under the module name of the older, generated client."""

from flux0.adapters.httpx import AsyncHttpClient, HttpClient

__all__ = ["AsyncHttpClient", "HttpClient"]
