"""Checks of files before anybody runs with them: every mistake at once, and what would be passed over in silence."""
