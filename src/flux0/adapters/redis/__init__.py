"""The store of background turns in Redis or Valkey."""
