"""The faces that our app sees."""
