"""Overlays: trees of files and templates that become newc archives."""
