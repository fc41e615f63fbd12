"""The one failure of the bench: something could not be measured, and why."""


class BenchError(Exception):
    """A measurement that cannot be made or trusted; the text is one line that says what to do."""
