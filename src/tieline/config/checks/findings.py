"""What checks find, with its place and what to do."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from tieline.config.fatal import one_line


class Severity(StrEnum):
    """How bad it is. The text is what people read."""

    ERROR = "error"
    """It does not do what it says."""
    WARNING = "warning"
    """It may not do what somebody expects."""
    NOTE = "note"
    """It is passed over, as it should be."""


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        line: Counted from 1; 0 if it is about the file as a whole.
        hint: What to do; empty if the message says it.
    """

    file: str
    line: int
    severity: Severity
    message: str
    hint: str


class Findings:
    """Takes what is found in one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.all: list[Finding] = []

    def error(self, line: int, message: str, hint: str = "") -> None:
        """Note something that does not do what it says."""
        self._add(line, Severity.ERROR, message, hint)

    def warn(self, line: int, message: str, hint: str = "") -> None:
        """Note something that may not do what somebody expects."""
        self._add(line, Severity.WARNING, message, hint)

    def note(self, line: int, message: str, hint: str = "") -> None:
        """Note something that is passed over."""
        self._add(line, Severity.NOTE, message, hint)

    def _add(self, line: int, severity: Severity, message: str, hint: str) -> None:
        finding = Finding(self.file, line, severity, one_line(message), one_line(hint))
        if finding not in self.all[-20:]:
            self.all.append(finding)


def quoted(word: str) -> str:
    """Return a hint that names what was probably meant; empty if there is nothing."""
    return f'did you mean "{word}"?' if word else ""
