"""What a client of one's own must be able to do, where the generated client had it."""

from flux0.adapters.httpx import AsyncHttpClient, HttpClient

__all__ = ["AsyncHttpClient", "HttpClient"]
