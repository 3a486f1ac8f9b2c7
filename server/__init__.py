"""One request's road: from the wire through the engine and back."""
