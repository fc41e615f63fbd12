"""Which header fields pass a sidecar, under which name, and which it adds; names are lower-case bytes throughout.

Every request of an app runs ``survey``, and ``to_app`` at the sidecar of the called app; its answer runs ``from_app``
there and ``to_caller`` at the caller's. Every function makes one pass and
returns a new list; fields that pass are the same objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from tieline.model import Headers

MAX_KNOWN_NAMES: Final = 1024
"""How many header names each table of this module remembers before it starts afresh."""
MAX_KNOWN_NAME_BYTES: Final = 64
"""Longer names are worked out anew each time, so that strangers cannot fill the memory with them."""

# RFC 9110 §7.6.1, and what daprd drops besides (http.md §3.2).
_HOP_BY_HOP: Final = frozenset(
    {
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"te",
        b"trailer",
        b"proxy-authorization",
        b"proxy-authenticate",
    }
)
IDENTITY: Final = frozenset({b"dapr-caller-app-id", b"dapr-caller-namespace", b"dapr-callee-app-id"})
"""Fields by which an app knows who calls it; within the mesh only sidecars set them."""
_ROUTING: Final = frozenset({b"host", b"dapr-app-id"})
_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"forwarded"})
_OWN_PREFIX: Final = b"tieline-"
_EVENT_STREAM: Final = b"text/event-stream"


# What to do with a field. Plain numbers, and keeping is zero: the loop below is on the path of every call.
_KEEP: Final = 0
_DROP: Final = 1
# Keep the first one only, a content-type only if it has a value.
_FIRST: Final = 2
# Look at the value: an empty user-agent means that none is to be sent (H-51), and the app gets the media type of
# an event stream in its canonical spelling (H-75).
_UNUSUAL: Final = 3
# Put "dapr-" in front, since gRPC keeps "grpc-" to itself.
_RENAME: Final = 4
# Drop it and the fields that it names.
_CONNECTION: Final = 5
# The caller's sidecar decides something by it.
_NOTE: Final = 6
_NOTE_AND_KEEP: Final = 7


LEFT_BEHIND: Final = b"tieline-left-behind"
"""Holds a field that ended at the caller's sidecar, ``name:value``, for apps that speak gRPC."""


class _Known(dict[bytes, int]):
    """What to do with a field of a name; worked out when first asked, remembered within bounds."""

    def __init__(self, decide: Callable[[bytes], int]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, name: bytes) -> int:
        action = self._decide(name)
        if len(name) <= MAX_KNOWN_NAME_BYTES:
            if len(self) >= MAX_KNOWN_NAMES:
                self.clear()
            self[name] = action
        return action


def _between_sidecars(name: bytes) -> int:
    """What neither a request nor an answer may carry past a sidecar."""
    if name == b"connection":
        return _CONNECTION
    if name in _HOP_BY_HOP or name == b"content-length" or name.startswith(_OWN_PREFIX):
        return _DROP
    return _KEEP


def _outbound(name: bytes) -> int:
    if name in (b"traceparent", b"tracestate", b"dapr-app-id") or name in IDENTITY:
        return _NOTE
    if name in (b"baggage", b"authorization"):
        return _NOTE_AND_KEEP
    if name == b"accept":
        return _UNUSUAL
    return _DROP if name in _ROUTING else _between_sidecars(name)


def _to_http(name: bytes) -> int:
    """The part that requests and answers have in common where daprd changes from gRPC metadata to HTTP."""
    if name.endswith(b"-bin") or name == b"destination-app-id":
        return _DROP
    if name.startswith(b"grpc-"):
        return _RENAME
    if name in (b"baggage", b"content-type"):
        return _FIRST
    return _between_sidecars(name)


def _to_endpoint(name: bytes) -> int:
    if name in _ROUTING:
        return _DROP
    if name in (b"user-agent", b"accept"):
        return _UNUSUAL
    return _to_http(name)


def _to_app(name: bytes) -> int:
    return _DROP if name in IDENTITY else _to_endpoint(name)


def _without_token(decide: Callable[[bytes], int]) -> Callable[[bytes], int]:
    return lambda name: _DROP if name == b"dapr-api-token" else decide(name)


_OUTBOUND: Final = _Known(_outbound)
_OUTBOUND_NO_TOKEN: Final = _Known(_without_token(_outbound))
_TO_APP: Final = _Known(_to_app)
_TO_APP_NO_TOKEN: Final = _Known(_without_token(_to_app))
_TO_ENDPOINT: Final = _Known(_to_endpoint)
_TO_ENDPOINT_NO_TOKEN: Final = _Known(_without_token(_to_endpoint))
_FROM_APP: Final = _Known(_between_sidecars)
_TO_CALLER: Final = _Known(_to_http)


_NOMINATES_NOTHING: Final = frozenset({b"keep-alive", b"Keep-Alive", b"close", b"Close", b""})


def _pass(headers: Headers, known: _Known) -> Headers:
    kept: Headers = []
    once: list[bytes] = []
    for field in headers:
        name, value = field
        action = known[name]
        if not action:
            kept.append(field)
        elif action is _DROP:
            continue
        elif action is _UNUSUAL:
            # Nearly every call has such a field, and its value is nearly always a usual one.
            if value and len(value) != len(_EVENT_STREAM):
                kept.append(field)
            elif value or name != b"user-agent":
                is_events = name == b"accept" and value.lower() == _EVENT_STREAM
                kept.append((name, _EVENT_STREAM) if is_events else field)
        elif action is _FIRST:
            if name not in once:
                once.append(name)
                if value or name != b"content-type":
                    kept.append(field)
        elif action is _RENAME:
            kept.append((b"dapr-" + name, value))
        elif value not in _NOMINATES_NOTHING:
            return _pass(_without_nominated(headers), known)
    return kept


# ── requests ──


Noted: TypeAlias = dict[bytes, list[bytes]]
"""Values, in order, of those fields of a request that decide something in the caller's sidecar."""


def survey(headers: Headers, *, drop_token: bool = False) -> tuple[Headers, Noted | None]:
    """Look once at each field of an app's request: what leaves the caller's sidecar, and what it must know.

    Gone are hop-by-hop fields and those that ``Connection`` names (H-47, see ``LEFT_BEHIND``), ``host``,
    ``content-length``, ``dapr-app-id`` (H-20), the identity fields (H-48), all that is Tieline's own, and the trace
    context, which is put back when it is decided.

    Args:
        headers: The fields of the app's request.
        drop_token: An API token is configured, so that it must not travel on (H-124).

    Returns:
        The fields that pass, in a list of its own; and the values of ``traceparent``, ``tracestate``, ``baggage``,
        ``dapr-app-id``, ``authorization``, the identity fields, and of an ``accept`` that asks for events. ``None`` if
        it has none.
    """
    known = _OUTBOUND_NO_TOKEN if drop_token else _OUTBOUND
    kept: Headers = []
    noted: Noted | None = None
    for field in headers:
        name, value = field
        action = known[name]
        if not action:
            kept.append(field)
        elif action is _DROP:
            continue
        elif action is _UNUSUAL:
            kept.append(field)
            if len(value) >= len(_EVENT_STREAM) and value.strip().lower() == _EVENT_STREAM:
                noted = _note(noted, field)
        elif action is _CONNECTION:
            if value not in _NOMINATES_NOTHING:
                kept, noted = survey(_without_nominated(headers), drop_token=drop_token)
                return kept + _left_behind(headers, known), noted
        else:
            if action is _NOTE_AND_KEEP:
                kept.append(field)
            noted = _note(noted, field)
    return kept, noted


def _note(noted: Noted | None, field: tuple[bytes, bytes]) -> Noted:
    name, value = field
    if noted is None:
        return {name: [value]}
    noted.setdefault(name, []).append(value)
    return noted


def _nominated(headers: Headers) -> set[bytes]:
    return {
        option.strip(b" \t").lower() for name, value in headers if name == b"connection" for option in value.split(b",")
    }


def _without_nominated(headers: Headers) -> Headers:
    """Return the fields that no ``Connection`` field names, without those themselves."""
    nominated = _nominated(headers)
    return [field for field in headers if field[0] != b"connection" and field[0] not in nominated]


def _left_behind(headers: Headers, known: _Known) -> Headers:
    """Return ``Connection`` and what it names as fields of our own: HTTP ends there, gRPC apps are told (G-64).

    Only what would pass if it were not named: nothing is brought past a rule by that.
    """
    nominated = {name for name in _nominated(headers) if known[name] == _KEEP} | {b"connection"}
    return [(LEFT_BEHIND, b"%b:%b" % field) for field in headers if field[0] in nominated]


def read_left_behind(headers: Headers) -> Headers:
    """Return the fields that ``survey`` left behind, by which HTTP goes no further."""
    found: Headers = []
    for name, value in headers:
        if name == LEFT_BEHIND:
            left, colon, text = value.partition(b":")
            if colon:
                found.append((left, text))
    return found


def to_app(headers: Headers, added: Headers, *, app_token: bytes = b"", drop_token: bool = False) -> Headers:
    """Return the fields that reach the called app, from another sidecar or, for self invocation, from the caller.

    Gone is what ``survey`` drops, ``destination-app-id``, and names that end in ``-bin``; ``grpc-`` names get
    ``dapr-`` in front; ``baggage`` and ``content-type`` are reduced to their first value.

    Args:
        headers: The fields as they came.
        added: What is put behind them: ``identity``, whole (H-48).
        app_token: Token that every call to the app carries; it replaces what a caller sent (H-114).
        drop_token: An API token is configured, so that it must not travel on (H-124).
    """
    kept = _pass(headers, _TO_APP_NO_TOKEN if app_token or drop_token else _TO_APP)
    kept += added
    if app_token:
        kept.append((b"dapr-api-token", app_token))
    return kept


def to_endpoint(headers: Headers, *, drop_token: bool = False) -> Headers:
    """Return the fields that reach an HTTP endpoint or a URL: as for an app, but identity fields are nobody's."""
    return _pass(headers, _TO_ENDPOINT_NO_TOKEN if drop_token else _TO_ENDPOINT)


def identity(caller: str, namespace: str, callee: str = "") -> Headers:
    """Return the identity fields (H-48): the caller's two, and the callee's if it is given. Make them once."""
    fields = [
        (b"dapr-caller-app-id", caller.encode("utf-8", "surrogateescape")),
        (b"dapr-caller-namespace", namespace.encode("utf-8", "surrogateescape")),
    ]
    if callee:
        fields.append((b"dapr-callee-app-id", callee.encode("utf-8", "surrogateescape")))
    return fields


def forwarded(address: str, hostname: str) -> Headers:
    """Return the fields that say which sidecar a call went through (H-49). Make them once a process.

    Args:
        address: The sidecar's IP address; empty if unknown, which leaves that part out.
        hostname: The machine's name; the same.
    """
    fields: Headers = []
    parts: list[str] = []
    if address:
        fields.append((b"x-forwarded-for", address.encode("utf-8", "surrogateescape")))
        quoted = f'"[{address}]"' if ":" in address else address
        parts += f"for={quoted}", f"by={quoted}"
    if hostname:
        fields.append((b"x-forwarded-host", hostname.encode("utf-8", "surrogateescape")))
        parts.append(f"host={hostname}")
    if parts:
        fields.append((b"forwarded", ";".join(parts).encode("utf-8", "surrogateescape")))
    return fields


def wants_events(headers: Headers) -> bool:
    """Tell whether a request asks for server-sent events, and for nothing else (H-75)."""
    for name, value in headers:
        if name == b"accept":
            return value.strip().lower() == _EVENT_STREAM
    return False


# ── answers ──


def from_app(headers: Headers) -> Headers:
    """Return the fields of an app's answer that leave its sidecar: end-to-end ones, less Tieline's own (H-67)."""
    return _pass(headers, _FROM_APP)


def to_caller(headers: Headers) -> Headers:
    """Return the fields of an answer that the calling app gets (H-67).

    Read the ``tieline-*`` fields that the callee's sidecar set before: they are gone afterwards.
    """
    return _pass(headers, _TO_CALLER)


# RFC 9110 §6.5.1: what says how a message is framed, routed or read cannot come after it.
_NO_TRAILER: Final = (
    _HOP_BY_HOP
    | IDENTITY
    | _ROUTING
    | _FORWARDED
    | {
        b"connection",
        b"content-length",
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"destination-app-id",
        b"dapr-api-token",
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"expect",
        b"max-forwards",
        b"cache-control",
    }
)


def clean_trailers(trailers: Headers) -> Headers:
    """Return the trailer fields that may pass: none that frames, routes or authorises, none that is Tieline's."""
    return [
        field
        for field in trailers
        if field[0] not in _NO_TRAILER and not field[0].startswith((b":", _OWN_PREFIX)) and field[0]
    ]


# ── spelling and validity ──

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LOWER_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")


class _Spellings(dict[bytes, bytes]):
    def __missing__(self, name: bytes) -> bytes:
        spelt = name
        if _TOKEN.fullmatch(name):
            spelt = b"-".join([part[:1].upper() + part[1:].lower() for part in name.split(b"-")])
        if len(name) <= MAX_KNOWN_NAME_BYTES:
            if len(self) >= MAX_KNOWN_NAMES:
                self.clear()
            self[name] = spelt
        return spelt


canonical: Final[Callable[[bytes], bytes]] = _Spellings().__getitem__
"""Return a name as HTTP/1.1 apps expect it: ``X-Custom-Header``. What is no token stays as it is."""


class BadFields(ValueError):
    """Fields of an HTTP/2 message that mean something else, or nothing, in HTTP/1.1; the text says why."""


_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
# All but control characters.
_PRINTABLE: Final = bytes([*range(0x20, 0x7F), *range(0x80, 0x100)])
_BLANKS: Final = b" \t"

# Names that were found good; ``te`` is never among them, as its value matters.
_good_names: Final[set[bytes]] = set()


def are_safe(values: list[bytes]) -> bool:
    """Tell by one look at all of them whether no value needs a closer one.

    Two blanks in a row, a tab, and a blank at either end are the only signs of a blank at the end of a value; they
    may be innocent, but they are rare, and then each value is looked at. So with control characters: the tab is fine.
    """
    joined = b" ".join(values)
    return not (
        joined.translate(None, _PRINTABLE)
        or joined.find(b"  ") >= 0
        or joined.startswith(b" ")
        or joined.endswith(b" ")
    )


def check_h2_fields(headers: Headers) -> None:
    """Refuse what must not get from HTTP/2 into HTTP/1.1 (RFC 9113 §8.2).

    Args:
        headers: Fields without pseudo-header fields, values as they came.

    Raises:
        BadFields: A name is no lower-case token or belongs to a connection, a value has blanks at its ends or a
            control character other than the tab, or ``te`` is anything but ``trailers``.
    """
    values = [value for name, value in headers if name in _good_names or (name == b"te" and value == b"trailers")]
    if len(values) == len(headers) and are_safe(values):
        return
    for name, value in headers:
        _check_h2_name(name, value)
        if value.translate(None, _PRINTABLE).strip(b"\t"):
            raise BadFields("a field value has a control character")
        if value and (value[0] in _BLANKS or value[-1] in _BLANKS):
            raise BadFields("a field value begins or ends with a blank")


def _check_h2_name(name: bytes, value: bytes) -> None:
    if name in _good_names:
        return
    if not _LOWER_TOKEN.fullmatch(name):
        raise BadFields("a field name is no lower-case token")
    if name in _CONNECTION_SPECIFIC:
        raise BadFields("a field belongs to a connection")
    if name == b"te":
        if value.lower() != b"trailers":
            raise BadFields("te may only say trailers")
    elif len(name) <= MAX_KNOWN_NAME_BYTES:
        if len(_good_names) >= MAX_KNOWN_NAMES:
            _good_names.clear()
        _good_names.add(name)
