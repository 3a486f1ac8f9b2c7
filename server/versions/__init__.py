"""Head versions: from an upload to a stored version, into memory, and into the active set."""
