"""Code that unit and integration tests share."""
