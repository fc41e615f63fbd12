"""What ``tieline invoke`` shows of a call: for people, with the body untouched, or as one JSON object."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from typing import Any, Final
from urllib.parse import unquote

from tieline.cli.api import shown
from tieline.cli.call import ANSWERED, FAILED, NO_SIDECAR, TIMED_OUT, Head
from tieline.cli.console import Console, write_all
from tieline.cli.table import clean, wrapped
from tieline.cli.wait import Address

MAX_ERROR: Final = 65536
"""Bytes of an error's body in which its message is looked for."""
MAX_IN_JSON: Final = 16 << 20
"""Bytes of a body that the JSON object holds; of a longer one it says that the rest is missing."""
FIRST_FAILURE: Final = 400
_BESIDE: Final = " " * 17
_TOLD: Final = (("tieline-cause", "why"), ("tieline-hop", "where"), ("tieline-hint", "what to do"))
TOKEN_HINT: Final = "if it is the sidecar that asks for a token, set DAPR_API_TOKEN or give --api-token"  # noqa: S105
UNAUTHORIZED: Final = 401
MAX_MESSAGE: Final = 1000
"""Letters shown of a message that is no JSON."""


class PlainReport:
    """Body to standard output, all else to standard error.

    Args:
        app_id: Who is called.
        include: Show status and headers before the body.
        quiet: Nothing but failures on standard error.
        as_json: Status lines as JSON.
    """

    def __init__(self, app_id: str, *, include: bool = False, quiet: bool = False, as_json: bool = False) -> None:
        self._app_id = app_id
        self._include = include
        self._quiet = quiet
        console = Console(as_json=as_json)
        self._console = Console(as_json=as_json, out=console.err, err=console.err)
        self._as_json = as_json
        self._out = console.out
        self._head: Head | None = None
        self._error = b""
        self._last = b"\n"
        self._known = ""

    def knows(self, text: str) -> None:
        """Keep what the registry tells of the app, for a call that fails."""
        self._known = text

    def calling(self, through: str, address: Address) -> None:
        """Say which sidecar is used."""
        if not self._quiet:
            whose = (
                f"the sidecar of {clean(through)}, {shown(address)}" if through else f"the sidecar at {shown(address)}"
            )
            self._console.info(f"Calling {clean(self._app_id)} through {whose}")

    def answered(self, head: Head) -> None:
        """The answer has begun."""
        self._head = head
        if self._include:
            lines = [f"{head.version} {head.status} {head.reason}".rstrip()]
            lines += [f"{name}: {value}" for name, value in head.headers]
            self._write("".join(f"{line}\r\n" for line in lines).encode("utf-8", "replace") + b"\r\n")

    def piece(self, data: bytes) -> None:
        """Pass a piece of the body on at once."""
        head = self._head
        if head is not None and head.status >= FIRST_FAILURE and len(self._error) < MAX_ERROR:
            self._error += data[: MAX_ERROR - len(self._error)]
        self._last = data[-1:]
        self._write(data)

    def over(self) -> int:
        """The answer is complete."""
        head = self._head
        assert head is not None
        self._end_line()
        if head.status < FIRST_FAILURE:
            if not self._quiet:
                self._console.success(f"App invoked successfully: {_status_line(head)} ({head.took_s * 1000:.1f} ms)")
            return ANSWERED
        self._explain(f"error invoking app {clean(self._app_id)}: {_status_line(head)}", explanation(head, self._error))
        return FAILED

    def broke_off(self, text: str) -> int:
        """The call failed underway."""
        self._end_line()
        self._console.fail(f"error invoking app {clean(self._app_id)}: {text}")
        return FAILED

    def not_reached(self, text: str) -> int:
        """There was no sidecar to call."""
        self._console.fail(f"error invoking app {clean(self._app_id)}: {text}")
        return NO_SIDECAR

    def timed_out(self, text: str) -> int:
        """The time was over first."""
        self._end_line()
        self._explain(f"error invoking app {clean(self._app_id)}: {text}", {})
        return TIMED_OUT

    def _explain(self, title: str, told: dict[str, str]) -> None:
        if self._known:
            told["seen here"] = self._known
        if self._as_json:
            self._console.fail("; ".join((title, *(f"{name}: {value}" for name, value in told.items()))))
            return
        lines = (wrapped(f"    {name + ':':12} {value}", sys.stderr, _BESIDE) for name, value in told.items())
        self._console.fail("\n".join((title, *lines)))

    def _end_line(self) -> None:
        """Begin a new line on a terminal that shows both, after a body that ended within one.

        What stands behind a pipe most likely writes to the same terminal.
        """
        if self._last == b"\n" or sys.stderr is None or not sys.stderr.isatty():
            return
        if self._out.isatty() or stat.S_ISFIFO(os.fstat(self._out.fileno()).st_mode):
            self._console.err.write(b"\n")

    def _write(self, data: bytes) -> None:
        write_all(self._out, data)


class JsonReport:
    """One JSON object to standard output, whatever happens; its members are in docs/cli.md."""

    def __init__(self, app_id: str) -> None:
        self._document: dict[str, Any] = {"appId": app_id, "through": None, "status": None}
        self._head: Head | None = None
        self._body = bytearray()
        self._size = 0
        self._known = ""

    def knows(self, text: str) -> None:
        """Keep what the registry tells of the app, for a call that fails."""
        self._known = text

    def calling(self, through: str, address: Address) -> None:
        """Note which sidecar is used."""
        self._document["through"] = {"appId": through or None, "address": shown(address)}

    def answered(self, head: Head) -> None:
        """The answer has begun."""
        self._head = head
        self._document |= {
            "status": head.status,
            "reason": head.reason,
            "headers": [list(field) for field in head.headers],
            "milliseconds": round(head.took_s * 1000, 3),
        }

    def piece(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._size += len(data)
        self._body += data[: MAX_IN_JSON - len(self._body)]

    def over(self) -> int:
        """The answer is complete."""
        head = self._head
        assert head is not None
        if head.status < FIRST_FAILURE:
            return self._end(ANSWERED, None)
        told = explanation(head, bytes(self._body[:MAX_ERROR]))
        if self._known:
            told["seen"] = self._known
        return self._end(FAILED, {"kind": "status", "message": told.pop("message", _status_line(head)), **_keys(told)})

    def broke_off(self, text: str) -> int:
        """The call failed underway."""
        return self._end(FAILED, {"kind": "broken", "message": text})

    def not_reached(self, text: str) -> int:
        """There was no sidecar to call."""
        return self._end(NO_SIDECAR, {"kind": "no-sidecar", "message": text})

    def timed_out(self, text: str) -> int:
        """The time was over first."""
        known = {"seen": self._known} if self._known else {}
        return self._end(TIMED_OUT, {"kind": "timeout", "message": text, **known})

    def _end(self, code: int, error: dict[str, Any] | None) -> int:
        if self._head is not None:
            self._keep_body()
        return self._print(code, error)

    def _keep_body(self) -> None:
        body = bytes(self._body)
        try:
            self._document["body"] = body.decode()
        except UnicodeDecodeError:
            self._document["bodyBase64"] = base64.b64encode(body).decode("ascii")
        self._document["bodyBytes"] = self._size
        if self._size > len(body):
            self._document["bodyIsCut"] = True

    def _print(self, code: int, error: dict[str, Any] | None) -> int:
        self._document["error"] = error
        self._document["exitCode"] = code
        print(json.dumps(self._document, indent=2))
        return code


def explanation(head: Head, body: bytes) -> dict[str, str]:
    """Return what an error answer tells of itself: ``message``, ``why``, ``where``, ``what to do``, as far as it does.

    The message is a sidecar's own, so it is there only where a sidecar and not the app made the answer.
    """
    told: dict[str, str] = {}
    if message := _message(body, by_sidecar=bool(head.header("tieline-cause"))):
        told["message"] = message
    for field, name in _TOLD:
        if value := head.header(field):
            told[name] = clean(unquote(value))
    if head.status == UNAUTHORIZED:  # a sidecar's own hint is for programs that call it
        told["what to do"] = TOKEN_HINT
    return told


def _message(body: bytes, *, by_sidecar: bool) -> str:
    """Return the message of a sidecar's error, Dapr's too: empty if the app made the answer."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and "errorCode" in document:
        return clean(str(document.get("message", "")))
    return clean(body.decode("utf-8", "replace").strip())[:MAX_MESSAGE] if by_sidecar else ""


def _keys(told: dict[str, str]) -> dict[str, str]:
    names = {name: field.removeprefix("tieline-") for field, name in _TOLD}
    return {names.get(name, name): value for name, value in told.items()}


def _status_line(head: Head) -> str:
    return clean(f"{head.status} {head.reason}".rstrip())
