"""Our app calls another."""
