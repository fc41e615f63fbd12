"""Log lines as Dapr writes them: logfmt text or JSON, one line a record, one write a line.

Loggers are the standard library's, below ``dapr``; a logger's name is the ``scope`` of its lines (O-42). More
fields go along as ``extra={"fields": {...}}``. Whatever stands in a value, a record stays one line and brings no
control character to a terminal: a caller who chooses a method or an app ID cannot forge log lines.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias, cast

from tieline.errors import ConfigError

FATAL: Final = logging.CRITICAL
"""The level ``fatal``: the process ends after such a line."""

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": FATAL,
}
"""What ``--log-level`` takes, in any case of letters (O-40)."""

_WRITTEN: Final[Mapping[int, str]] = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    FATAL: "fatal",
}
_COLOURS: Final[Mapping[str, str]] = {
    "debug": "37",
    "info": "36",
    "warning": "33",
    "error": "31",
    "fatal": "31",
}
# asyncio reports what nobody else could (a task that failed unseen); its lines should look like all others.
_TREES: Final = ("dapr", "tieline", "asyncio")

Fields: TypeAlias = Mapping[str, object]


class ByteSink(Protocol):
    """Where lines go: an unbuffered binary stream."""

    def write(self, data: bytes, /) -> int | None:
        """Take some of ``data`` and return how much; ``None`` if the sink cannot take any now."""
        ...


def configure(
    *,
    level: str = "info",
    as_json: bool = False,
    log_file: str | None = None,
    app_id: str = "",
    instance: str = "",
    version: str = "",
    stream: ByteSink | None = None,
) -> None:
    """Send all lines of the ``dapr`` and ``tieline`` loggers to one place, in one form. May be called again.

    Args:
        level: A key of ``LEVELS`` in any case of letters.
        as_json: JSON objects with sorted keys instead of text.
        log_file: Appended to, made with mode 0644 if missing; empty or ``None`` for ``stream``.
        app_id: Own app ID, field ``app_id``.
        instance: Host name.
        version: Version of the runtime, field ``ver``.
        stream: Standard output if ``None``.

    Raises:
        ConfigError: The level is unknown or the file cannot be opened. Logging then works on ``stream`` at level
            info, so that this very error can be logged.
    """
    sink = stream if stream is not None else _standard_output()
    fixed = {"app_id": app_id, "instance": instance, "type": "log", "ver": version}
    _install(LineHandler(sink, _renderer(as_json, sink), fixed), logging.INFO)
    threshold = LEVELS.get(level.lower())
    if threshold is None:
        raise ConfigError(f"invalid value for --log-level: {level}")
    if log_file:
        file = _open(log_file)
        _install(LineHandler(file, _renderer(as_json, file), fixed, close=file.close), threshold)
    for tree in _TREES:
        logging.getLogger(tree).setLevel(threshold)


def _install(handler: LineHandler, level: int) -> None:
    for tree in _TREES:
        logger = logging.getLogger(tree)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def _standard_output() -> ByteSink:
    # Not sys.stdout: a line must leave in one write, whole, whatever its length.
    return open(1, "wb", buffering=0, closefd=False)


class _File:
    """A log file, always written at its end, so that several sidecars may share it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes, /) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open(path: str) -> _File:
    try:
        return _File(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ConfigError(f'failed to open log file "{path}": open {path}: {reason}') from error
    except ValueError as error:  # a NUL byte in the name
        raise ConfigError(f"failed to open log file {path!r}: {error}") from error


class LineHandler(logging.Handler):
    """Renders records and writes each as one line. Never raises: logging must not break what it tells about."""

    def __init__(
        self,
        sink: ByteSink,
        render: Callable[[Fields], str],
        fixed: Fields,
        close: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._sink = sink
        self._render = render
        self._fixed = fixed
        self._close = close

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; a sink that is closed or full loses it."""
        line = (self._render(self._fields(record)) + "\n").encode("utf-8", "backslashreplace")
        try:
            while line:
                taken = self._sink.write(line)
                if not taken:  # would block: a line is lost rather than the data path stopped
                    return
                line = line[taken:]
        except (OSError, ValueError):
            return

    def close(self) -> None:
        """Close a log file; later records are dropped. Idempotent."""
        super().close()
        if self._close is not None:
            self._close()

    def _fields(self, record: logging.LogRecord) -> Fields:
        fields = dict(cast("Fields", getattr(record, "fields", {})))
        if record.exc_info and isinstance(record.exc_info[1], BaseException):
            fields["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            fields["stack"] = "".join(traceback.format_exception(record.exc_info[1]))
        fields.update(self._fixed)
        fields["scope"] = record.name
        fields["time"] = _now()
        fields["level"] = _WRITTEN.get(record.levelno) or record.levelname.lower()
        fields["msg"] = _message(record)
        return fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit the text: a bug in a log call must not lose the line
        return f"{record.msg} {record.args!r}"


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"


def _renderer(as_json: bool, sink: ByteSink) -> Callable[[Fields], str]:
    if as_json:
        return render_json
    return _render_colour if is_colourful(sink) else render_text


def is_colourful(sink: object) -> bool:
    """Whether a stream is a terminal that wants colours (``NO_COLOR`` and ``TERM=dumb`` say no)."""
    isatty = getattr(sink, "isatty", None)
    if isatty is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(isatty()) and sys.platform != "win32"


def render_text(fields: Fields) -> str:
    """Render as logfmt: time, level, msg, then the other fields by name."""
    first = [f"{key}={_quote(_text(fields[key]))}" for key in ("time", "level", "msg") if fields[key] != ""]
    rest = [
        f"{_bare_key(key)}={_quote(_text(value))}"
        for key, value in sorted(fields.items())
        if key not in ("time", "level", "msg")
    ]
    return " ".join(first + rest)


def _render_colour(fields: Fields) -> str:
    level = str(fields["level"])
    colour = _COLOURS.get(level, "0")
    return render_text(fields).replace(f" level={level}", f" level=\x1b[{colour}m{level}\x1b[0m", 1)


def render_json(fields: Fields) -> str:
    """Render as one JSON object with sorted keys; numbers and booleans stay what they are."""
    plain = {
        key: value if value is None or isinstance(value, (bool, int, float)) else _text(value)
        for key, value in fields.items()
    }
    line = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # JSON allows C1 controls, bidirectional marks and the like as they are; a terminal would obey them.
    return line if line.isprintable() else _escape(line, lambda c: json.dumps(c)[1:-1])


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_BARE: Final = re.compile(r"[A-Za-z0-9\-._/@^+]*")
_NOT_IN_A_KEY: Final = re.compile(r"[^A-Za-z0-9\-._]")
_SHORT: Final[Mapping[str, str]] = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
}


def _bare_key(key: str) -> str:
    return _NOT_IN_A_KEY.sub("_", key)


def _quote(text: str) -> str:
    """Quote a value as Go's ``%q`` does, unless it can stand bare."""
    if _BARE.fullmatch(text):
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text if text.isprintable() else _escape(text, _escape_as_go)}"'


def _escape(text: str, escaped: Callable[[str], str]) -> str:
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def _escape_as_go(c: str) -> str:
    code = ord(c)
    if c in _SHORT:
        return _SHORT[c]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
