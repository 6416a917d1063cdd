"""Images: import, generations, what is inside."""
