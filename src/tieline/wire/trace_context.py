"""W3C trace context on requests and answers: what is continued, what is started anew, what the caller is told."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from tieline.model import Headers

TRACEPARENT_BYTES: Final = 55
_DASHES: Final = b"---"
_LOWER_HEX: Final = b"0123456789abcdef"
_DASH: Final = 0x2D
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16

MAX_TRACESTATE_BYTES: Final = 512
"""A longer ``tracestate`` still reaches the app, but does not come back on the answer (O-7)."""
MAX_TRACESTATE_MEMBERS: Final = 32


class TraceParent(NamedTuple):
    """A valid ``traceparent``.

    Attributes:
        trace_id: 32 lower-case hex digits.
        span_id: 16 lower-case hex digits.
        flags: 0 to 255; the lowest bit means sampled.
    """

    trace_id: bytes
    span_id: bytes
    flags: int


class Context:
    """The trace that a request belongs to.

    Attributes:
        traceparent: Always valid and of version 00.
        tracestate: First line that came with it, valid or not; empty if there was none.
    """

    __slots__ = ("traceparent", "tracestate")

    def __init__(self, traceparent: bytes, tracestate: bytes = b"") -> None:
        self.traceparent = traceparent
        self.tracestate = tracestate

    @property
    def fields(self) -> Headers:
        """The fields that carry it."""
        fields = [(b"traceparent", self.traceparent)]
        if self.tracestate:
            fields.append((b"tracestate", self.tracestate))
        return fields

    @property
    def trace_id(self) -> bytes:
        """32 lower-case hex digits."""
        return self.traceparent[3:35]


def is_traceparent(value: bytes) -> bool:
    """Tell whether a ``traceparent`` can be continued (O-6): of any version but ff, ids not all zero."""
    head = value
    if len(value) != TRACEPARENT_BYTES:
        # Only a higher version may go on behind the flags.
        if len(value) < TRACEPARENT_BYTES or value[TRACEPARENT_BYTES] != _DASH or value.startswith(b"00"):
            return False
        head = value[:TRACEPARENT_BYTES]
    return (
        head.translate(None, _LOWER_HEX) == _DASHES
        and head[2] == _DASH
        and head[35] == _DASH
        and head[52] == _DASH
        and not head.startswith(b"ff")
        and head[3:35] != _NO_TRACE
        and head[36:52] != _NO_SPAN
    )


def parse_traceparent(value: bytes) -> TraceParent | None:
    """Return the parts of a ``traceparent``; ``None`` if it counts as absent (O-6)."""
    if not is_traceparent(value):
        return None
    return TraceParent(value[3:35], value[36:52], int(value[53:55], 16))


def render_traceparent(trace_id: bytes, span_id: bytes, flags: int) -> bytes:
    """Return a ``traceparent``, which is always of version 00."""
    return b"00-%b-%b-%02x" % (trace_id, span_id, flags)


def is_exempt(path: bytes) -> bool:
    """Tell whether a path is one of health: its baggage is not checked, its answer has no trace (H-55, H-56)."""
    return path.find(b"/healthz") >= 0


def continue_or_start(
    traceparents: list[bytes] | None, tracestates: list[bytes] | None, new_ids: Callable[[], tuple[bytes, bytes]]
) -> Context:
    """Continue the caller's trace unchanged, or start an unsampled one if it sent none that is valid (H-55, H-160).

    Args:
        traceparents: Values of the request's ``traceparent`` fields in order, of which the first counts.
        tracestates: The same of ``tracestate``; they belong to a valid ``traceparent`` only.
        new_ids: Gives a trace id and a span id, e.g. ``IdSource``.
    """
    if traceparents and is_traceparent(traceparents[0]):
        traceparent = traceparents[0]
        if len(traceparent) != TRACEPARENT_BYTES or not traceparent.startswith(b"00"):
            traceparent = b"00" + traceparent[2:TRACEPARENT_BYTES]
        return Context(traceparent, tracestates[0] if tracestates else b"")
    return Context(b"00-%b-%b-00" % new_ids())


def add_to_answer(headers: Headers, context: Context) -> None:
    """Add the context to an answer's fields, in place, unless the app has set its own (H-68, O-7)."""
    has_state = False
    for name, _ in headers:
        if name == b"traceparent":
            return
        if name == b"tracestate":
            has_state = True
    headers.append((b"traceparent", context.traceparent))
    if context.tracestate and not has_state and is_tracestate(context.tracestate):
        headers.append((b"tracestate", context.tracestate))


_MEMBER: Final = re.compile(
    rb"(?P<key>[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


def is_tracestate(value: bytes) -> bool:
    """Tell whether a ``tracestate`` is well-formed by W3C and short enough to be told to the caller (O-7)."""
    if len(value) > MAX_TRACESTATE_BYTES:
        return False
    keys: set[bytes] = set()
    for member in value.split(b","):
        member = member.strip(b" \t")
        if not member:
            continue
        match = _MEMBER.fullmatch(member)
        if match is None or match["key"] in keys:
            return False
        keys.add(match["key"])
    return 0 < len(keys) <= MAX_TRACESTATE_MEMBERS


class IdSource:
    """Draws trace ids and span ids. They must be unique, not secret: the system's random source only seeds it."""

    _IDS_A_DRAW: Final = 64
    _DIGITS: Final = 48

    def __init__(self, seed: bytes | None = None) -> None:
        self._random = random.Random(os.urandom(32) if seed is None else seed)
        self._digits = b""
        self._at = 0

    def __call__(self) -> tuple[bytes, bytes]:
        """Return a trace id of 32 and a span id of 16 lower-case hex digits, neither all zero."""
        at = self._at
        if at >= len(self._digits):
            self._digits = self._random.randbytes(self._IDS_A_DRAW * self._DIGITS // 2).hex().encode()
            at = 0
        self._at = at + self._DIGITS
        trace_id, span_id = self._digits[at : at + 32], self._digits[at + 32 : at + 48]
        if trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return self()
        return trace_id, span_id
