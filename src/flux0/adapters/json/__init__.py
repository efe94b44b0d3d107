"""The codec, which converts between the server's JSON and models."""

from flux0.adapters.json.codec import JsonCodec as JsonCodec
