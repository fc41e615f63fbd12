"""The channel to our own app."""
