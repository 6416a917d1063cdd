"""One file per group of routes: request to pure call to response."""
