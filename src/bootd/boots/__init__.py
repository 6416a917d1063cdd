"""Boots as they happen, and the tokens that belong to them."""
