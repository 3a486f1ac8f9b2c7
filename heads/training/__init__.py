"""Plain torch loops that train a head on boundary states from a running server: the trainer never holds the trunk."""
