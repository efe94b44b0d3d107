"""The codec: the server's JSON to models and back, on cattrs."""

from flux0.adapters.json.codec import JsonCodec

__all__ = ["JsonCodec"]
