"""What unit and integration tests share."""
