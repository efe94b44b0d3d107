"""The codec, which converts between the server's JSON and models. It is based on cattrs."""

from flux0.adapters.json.codec import JsonCodec

__all__ = ["JsonCodec"]
