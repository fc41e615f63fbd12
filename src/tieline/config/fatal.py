"""Why a start is refused: what to say, with which first words, and with which exit code."""

from __future__ import annotations

from typing import ClassVar, Final

from tieline.errors import ConfigError

RUNTIME: Final = "Fatal error from runtime: "
"""First words of most refusals, as tools that watch a sidecar's log expect them."""
FLAGS: Final = "Failed to parse flags: "
"""First words where a size or ``--actors-disseminate-timeout`` is wrong."""


def one_line(text: str) -> str:
    """Return the text with unprintable characters escaped: what users typed may hold line breaks or broken bytes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(ConfigError):
    """The command line itself does not parse (H-151 a): show the usage text, then this as the last line.

    Attributes:
        notices: Lines for stderr that come before the usage text: deprecated options met on the way.
        hint: What was probably meant, for a line before the last; empty if nobody knows.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, notices: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(one_line(message))
        self.notices = notices
        self.hint = hint


class FatalOption(ConfigError):
    """A value of an option or of a Configuration cannot be used (H-151 b). ``str()`` is prefix and message."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, prefix: str = RUNTIME) -> None:
        self.message = one_line(message)
        super().__init__(prefix + self.message)
        self.prefix = prefix


class ProtectionNotBuilt(FatalOption):
    """A setting asks for a protection that this version does not have: it is never accepted in silence."""
