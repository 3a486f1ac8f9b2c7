"""The server: a request's way from the wire through the engine and back."""
