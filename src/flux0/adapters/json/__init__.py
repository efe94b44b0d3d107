"""The codec, which converts the server's JSON to models and back, based on cattrs."""

from flux0.adapters.json.codec import JsonCodec

__all__ = ["JsonCodec"]
