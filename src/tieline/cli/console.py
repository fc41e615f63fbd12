"""What ``run`` and ``demo`` say: status lines with a sign, and an app's output line by line.

Two processes and their sidecars share one terminal, so each line leaves in one write.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Final

SIGNS: Final[Mapping[str, str]] = {
    "success": "✅  ",
    "failure": "❌  ",
    "warning": "⚠  ",
    "pending": "⌛  ",
    "info": "ℹ️  ",
}
PLAIN_SIGNS: Final[Mapping[str, str]] = {
    "success": "ok:  ",
    "failure": "failed:  ",
    "warning": "warning:  ",
    "pending": "wait:  ",
    "info": "",
}
"""For terminals whose encoding has none of these signs."""
APP_PREFIX: Final = b"== APP == "
MAX_LINE: Final = 65536
"""The longest line of an app that is kept in one piece, in bytes."""
_BOLD_BLUE: Final = b"\x1b[1;34m"
_RESET: Final = b"\x1b[0m"


class Console:
    """Standard output and standard error of this command.

    Args:
        as_json: Status lines as JSON objects (K-1).
        out: Unbuffered binary stream; standard output if ``None``.
        err: The same of standard error.
    """

    def __init__(self, *, as_json: bool = False, out: IO[bytes] | None = None, err: IO[bytes] | None = None) -> None:
        self._as_json = as_json
        self.out: Final = out if out is not None else io.FileIO(1, "w", closefd=False)
        self.err: Final = err if err is not None else io.FileIO(2, "w", closefd=False)

    def info(self, text: str) -> None:
        """Say what is going on."""
        self._status("info", text)

    def success(self, text: str) -> None:
        """Say what went well."""
        self._status("success", text)

    def warn(self, text: str) -> None:
        """Say what looks wrong and does not stop us."""
        self._status("warning", text)

    def fail(self, text: str) -> None:
        """Say what failed and what to do, on standard error."""
        self._status("failure", text)

    def plain(self, text: str) -> None:
        """Write a line without a sign."""
        self._write(self.out, text)

    def _status(self, status: str, text: str) -> None:
        stream = self.err if status == "failure" else self.out
        if not self._as_json:
            self._write(stream, sign_of(status) + text)
            return
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._write(stream, json.dumps({"time": now, "status": status, "msg": text}, ensure_ascii=False))

    def _write(self, stream: IO[bytes], text: str) -> None:
        write_line(stream, (text + "\n").encode(_encoding(), "replace"))


def sign_of(status: str) -> str:
    """Return the sign before a status line; a word where standard output cannot show it."""
    sign = SIGNS[status]
    try:
        sign.encode(_encoding())
    except UnicodeEncodeError:
        return PLAIN_SIGNS[status]
    return sign


def _encoding() -> str:
    return (sys.stdout.encoding if sys.stdout is not None else None) or "utf-8"


def write_line(stream: IO[bytes], line: bytes) -> None:
    """Write one line at once; a reader that is gone loses it."""
    try:
        stream.write(line)
        stream.flush()
    except (OSError, ValueError):
        return


class ReaderGone(Exception):
    """Nobody reads our standard output any more, as after ``| head -1``: time to end, in silence."""


class NotWritten(Exception):
    """Standard output takes nothing; the text says why."""


def write_all(stream: IO[bytes], data: bytes) -> None:
    """Write data at once.

    Raises:
        ReaderGone: The reader is.
        NotWritten: It cannot be written, as to a full disk.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[stream.write(view) or 0 :]  # an unbuffered stream may take a part only
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        raise NotWritten(f"the answer cannot be written: {(error.strerror or str(error)).lower()}") from error


def relay(source: IO[bytes], stream: IO[bytes], name: str) -> threading.Thread:
    """Copy an app's output to one of our streams, each line behind ``== APP == ``, until it ends.

    The prefix is coloured on a terminal, unless ``NO_COLOR`` is set. Stopping to read at a closed terminal would
    stop the app in a write, so reading goes on.
    """
    colourful = stream.isatty() and not os.environ.get("NO_COLOR")
    prefix = _BOLD_BLUE + APP_PREFIX + _RESET if colourful else APP_PREFIX

    def copy() -> None:
        with source:
            while line := source.readline(MAX_LINE):
                write_line(stream, prefix + line if line.endswith(b"\n") else prefix + line + b"\n")

    thread = threading.Thread(target=copy, name=name, daemon=True)
    thread.start()
    return thread
