"""What ``tieline invoke --grpc`` shows of a call: for people, a message a line, or as one JSON object."""

from __future__ import annotations

import base64
import json
from typing import Any, Final, Protocol
from urllib.parse import unquote

from tieline.cli.call import ANSWERED, FAILED, TIMED_OUT
from tieline.cli.report import MAX_IN_JSON, TOKEN_HINT, JsonReport, PlainReport
from tieline.cli.rpc import Ended
from tieline.cli.table import clean
from tieline.cli.wait import Address
from tieline.errors import GrpcCode, name_of
from tieline.model import Headers, RpcStatus

_TOLD: Final = ((b"tieline-cause", "why"), (b"tieline-hop", "where"), (b"tieline-hint", "what to do"))


class RpcReport(Protocol):
    """Is told how an RPC goes, and returns the exit code in the end."""

    def knows(self, text: str) -> None: ...
    def calling(self, through: str, address: Address) -> None: ...
    def begun(self, headers: Headers, took_s: float) -> None: ...
    def line(self, document: str) -> None: ...
    def piece(self, data: bytes) -> None: ...
    def ended(self, ended: Ended, took_s: float, *, in_time: bool) -> int: ...
    def broke_off(self, text: str) -> int: ...
    def not_reached(self, text: str) -> int: ...
    def timed_out(self, text: str) -> int: ...


class PlainRpcReport(PlainReport):
    """Messages to standard output, all else to standard error; the same of whoever called as of ``PlainReport``."""

    def begun(self, headers: Headers, took_s: float) -> None:
        """The answer has begun."""
        if self._include:
            self._write(_lines(headers) + b"\r\n")

    def line(self, document: str) -> None:
        """Show a message of the answer."""
        self._last = b"\n"
        self._write(document.encode("utf-8", "replace") + b"\n")

    def ended(self, ended: Ended, took_s: float, *, in_time: bool) -> int:
        """The RPC is over."""
        self._end_line()
        if self._include and ended.trailers:
            self._write(b"\r\n" + _lines(ended.trailers))
        status = ended.status
        if status.code == GrpcCode.OK:
            if not self._quiet:
                self._console.success(f"App invoked successfully: OK ({took_s * 1000:.1f} ms)")
            return ANSWERED
        told = explanation(ended)
        for number, detail in enumerate(details_of(status), 1):
            told["details" if number == 1 else f"details {number}"] = clean(json.dumps(detail, ensure_ascii=False))
        self._explain(f"error invoking app {clean(self._app_id)}: {_status_line(status)}", told)
        return FAILED if in_time else TIMED_OUT


class JsonRpcReport(JsonReport):
    """One JSON object to standard output, whatever happens; its members are in docs/cli.md."""

    def __init__(self, app_id: str) -> None:
        super().__init__(app_id)
        self._messages: list[Any] = []
        self._has_body = False

    def begun(self, headers: Headers, took_s: float) -> None:
        """The answer has begun."""
        self._document["headers"] = _pairs(headers)
        self._document["milliseconds"] = round(took_s * 1000, 3)

    def line(self, document: str) -> None:
        """Keep a message of the answer."""
        self._size += len(document)
        if self._size <= MAX_IN_JSON:
            self._messages.append(json.loads(document))
        else:
            self._document["messagesAreCut"] = True

    def piece(self, data: bytes) -> None:
        """Keep the data that the app answered."""
        self._has_body = True
        super().piece(data)

    def ended(self, ended: Ended, took_s: float, *, in_time: bool) -> int:
        """The RPC is over."""
        status = ended.status
        self._document |= {
            "status": name_of(status.code), "code": status.code, "trailers": _pairs(ended.trailers),
        }  # fmt: skip
        self._document.setdefault("milliseconds", round(took_s * 1000, 3))
        if status.code == GrpcCode.OK:
            return self._end(ANSWERED, None)
        told = {name.removeprefix("tieline-"): value for name, value in _told(ended.trailers)}
        if self._known:
            told["seen"] = self._known
        error: dict[str, Any] = {"kind": "status", "message": status.message, **told, "details": details_of(status)}
        return self._end(FAILED if in_time else TIMED_OUT, error if in_time else {**error, "kind": "timeout"})

    def _end(self, code: int, error: dict[str, Any] | None) -> int:
        if self._has_body:
            self._keep_body()
        else:
            self._document["messages"] = self._messages
        return self._print(code, error)


def explanation(ended: Ended) -> dict[str, str]:
    """Return what a failure tells of itself: ``why``, ``where``, ``what to do``, as far as a sidecar said it."""
    names = {field.decode(): name for field, name in _TOLD}
    told = {names[field]: value for field, value in _told(ended.trailers)}
    if ended.status.code == GrpcCode.UNAUTHENTICATED:
        told.setdefault("what to do", TOKEN_HINT)
    return told


def _told(trailers: Headers) -> list[tuple[str, str]]:
    found = []
    for field, _ in _TOLD:
        value = next((value for name, value in trailers if name == field), b"")
        if value:
            found.append((field.decode(), clean(unquote(value.decode("latin-1")))))
    return found


def details_of(status: RpcStatus) -> list[Any]:
    """Return the details of a status as JSON values; one of an unknown type, or that goes too deep, as its bytes."""
    if not status.details:
        return []
    from google.protobuf.message import DecodeError

    from tieline._generated.google.rpc import status_pb2

    try:
        found = status_pb2.Status.FromString(status.details)
    except DecodeError:
        return [{"@bytes": base64.b64encode(status.details).decode()}]
    return [_detail(detail) for detail in found.details]


def _detail(detail: Any) -> Any:
    from google.protobuf import json_format

    from tieline._generated.google.rpc import error_details_pb2  # noqa: F401 - fills the pool
    from tieline._generated.pool import POOL

    try:
        return json_format.MessageToDict(detail, descriptor_pool=POOL)
    except (TypeError, ValueError, RecursionError, json_format.Error):
        return {"@type": detail.type_url, "@bytes": base64.b64encode(detail.value).decode()}


def _status_line(status: RpcStatus) -> str:
    return clean(f"{name_of(status.code)}: {status.message}".removesuffix(": "))


def _pairs(headers: Headers) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("utf-8", "replace")] for name, value in headers]


def _lines(headers: Headers) -> bytes:
    return b"".join(b"%s: %s\r\n" % field for field in headers)
