"""Text files to a validated registry."""
