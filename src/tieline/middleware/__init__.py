"""Steps that every call passes, and how they are joined."""
