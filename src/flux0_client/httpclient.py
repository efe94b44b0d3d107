"""The protocols of HTTP clients, in the same module as in the generated client."""

from flux0.adapters.httpx import AsyncHttpClient, HttpClient

__all__ = ["AsyncHttpClient", "HttpClient"]
