"""The HTTP side: routes, handlers, files."""
