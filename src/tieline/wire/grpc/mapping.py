"""Fields of HTTP messages, metadata, and the maps of Dapr's internal messages: what each becomes as another.

Where an HTTP end meets a gRPC one, its fields go through one function here, once:

- ``fields_to_metadata``: an HTTP client's fields for a gRPC app, or an HTTP app's for a gRPC client (G-64);
- ``metadata_to_metadata``: between a gRPC client and a gRPC app;
- ``metadata_to_fields``: a gRPC client's metadata for an HTTP app, or a gRPC app's for an HTTP client (G-59);
- ``fields_to_internal``, ``metadata_to_internal``, ``from_internal``: towards and from a sidecar that speaks gRPC.

Fields are lower-case ``Headers`` throughout, values of ``-bin`` names in metadata the base64 text that is on the wire.
Codes are in ``codes``, the trace context in ``trace``: no function here passes on one of its three fields but
those of the internal maps.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from tieline.model import Headers
from tieline.wire.grpc.metadata import decode_binary, encode_binary, is_binary, may_be_sent
from tieline.wire.grpc.status import CONTENT_TYPE
from tieline.wire.grpc.trace import TRACE_FIELDS
from tieline.wire.headers import MAX_KNOWN_NAME_BYTES, MAX_KNOWN_NAMES, canonical

InternalMap: TypeAlias = dict[str, list[str]]
"""``metadata``, ``headers`` or ``trailers`` of an internal message: names as spelt there, binary values as base64."""
Refused: TypeAlias = Callable[[bytes], None]
"""Is told the name of an entry that cannot be sent as metadata and is left out; daprd fails the call (G-63)."""

PROTOBUF_TYPE: Final = b"application/x-protobuf"

_OWN_PREFIX: Final = b"tieline-"
_LENGTH: Final = "Content-Length"
# What gRPC itself puts into HEADERS, or reads there; never an app's to set (G-63).
RESERVED: Final = frozenset(
    {
        b"content-type",
        b"grpc-accept-encoding",
        b"grpc-encoding",
        b"grpc-message",
        b"grpc-message-type",
        b"grpc-status",
        b"grpc-status-details-bin",
        b"grpc-timeout",
        b"te",
        b"user-agent",
    }
)
"""Names that no metadata are sent under."""
_NOT_COPIED: Final = TRACE_FIELDS | {b"destination-app-id"}
# Headers that mean something in HTTP get a prefix, lest gRPC take them for its own (G-64).
_PREFIXED: Final = frozenset(
    b"""accept accept-charset accept-language accept-ranges connection keep-alive proxy-connection transfer-encoding
    upgrade cache-control content-type content-length cookie date expect from host if-match if-modified-since
    if-none-match if-schedule-tag-match if-unmodified-since max-forwards origin pragma referer via warning""".split()
)
_HTTP2: Final = {
    b":method": b"dapr-method",
    b":scheme": b"dapr-scheme",
    b":path": b"dapr-path",
    b":authority": b"dapr-authority",
}
# Of no meaning past the hop; type and length of the body come from the message (G-59).
_NO_FIELD: Final = _NOT_COPIED | {
    b"connection",
    b"content-length",
    b"content-type",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
_FRAMING: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    }
)
_PROTOCOL_OF_HOP: Final = frozenset(
    {
        b"grpc-accept-encoding",
        b"grpc-encoding",
        b"grpc-message",
        b"grpc-message-type",
        b"grpc-status",
        b"grpc-timeout",
    }
)
# What a sidecar adds keeps its spelling, in lower case, beside canonical names (grpc.md §5.3).
_KEPT_LOWER: Final = frozenset(
    {b"dapr-caller-app-id", b"dapr-caller-namespace", b"dapr-callee-app-id", b"destination-app-id"}
)
# ... but for these, which are canonical whoever made the call.
_FORWARDED: Final = {
    b"x-forwarded-for": "X-Forwarded-For",
    b"x-forwarded-host": "X-Forwarded-Host",
    b"forwarded": "Forwarded",
}
_is_name: Final = re.compile(rb":?[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


# ── HTTP and gRPC ──


class _Sent(dict[bytes, bytes]):
    """Name of a header to its name in metadata, or to one of the marks below; remembered within bounds."""

    def __missing__(self, name: bytes) -> bytes:
        sent = _name_sent(name)
        if len(name) <= MAX_KNOWN_NAME_BYTES:
            if len(self) >= MAX_KNOWN_NAMES:
                self.clear()
            self[name] = sent
        return sent


_DROPPED: Final = b"(dropped)"
_BINARY: Final = b"(binary)"
_REFUSED: Final = b"(refused)"
# Marks are told by being the same object; no name that can be sent is equal to them either.


def _name_sent(name: bytes) -> bytes:
    if name in _NOT_COPIED or name == b"content-length" or name.startswith(_OWN_PREFIX):
        return _DROPPED
    if name in _PREFIXED:
        return b"dapr-" + name
    if name in RESERVED:
        return _DROPPED
    if not may_be_sent(name, b""):
        return _REFUSED
    return _BINARY if is_binary(name) else name


_sent: Final = _Sent()


def fields_to_metadata(headers: Headers, *, length: int | None = None, on_refused: Refused | None = None) -> Headers:
    """Return the fields of an HTTP message as metadata to send (G-64).

    Headers with a meaning in HTTP get ``dapr-`` in front; the text of a ``-bin`` header becomes the binary value.

    Args:
        length: Declared length of the body, told as ``dapr-content-length``; ``None`` and 0 are not.
    """
    sent: Headers = []
    for name, value in headers:
        named = _sent[name]
        if named is _DROPPED:
            continue
        if named is _BINARY:
            sent.append((name, encode_binary(value)))
        elif named is not _REFUSED:
            sent.append((named, value))
        elif on_refused is not None:
            on_refused(name)
    if b"".join([value for _, value in sent]).translate(None, _PRINTABLE):
        sent = _printable(sent, on_refused)
    if length:
        sent.append((b"dapr-content-length", b"%d" % length))
    return sent


def _printable(metadata: Headers, on_refused: Refused | None) -> Headers:
    """Return the entries whose values gRPC carries."""
    kept: Headers = []
    for field in metadata:
        if field[1].translate(None, _PRINTABLE):
            if on_refused is not None:
                on_refused(field[0])
        else:
            kept.append(field)
    return kept


def metadata_to_metadata(metadata: Headers, *, on_refused: Refused | None = None) -> Headers:
    """Return metadata of one call as those of the next: less what gRPC keeps to itself and less broken entries."""
    sent: Headers = []
    for field in metadata:
        name, value = field
        if name in _NOT_COPIED or name in RESERVED or name.startswith((b":", _OWN_PREFIX)):
            continue
        if is_binary(name):
            decoded = decode_binary(value)
            if decoded is None or not _is_name(name):
                if on_refused is not None:
                    on_refused(name)
            else:
                sent += [(name, encode_binary(one)) for one in decoded]
        elif may_be_sent(name, value):
            sent.append(field)
        elif on_refused is not None:
            on_refused(name)
    return sent


def own_metadata(fields: Headers) -> Headers:
    """Return the metadata in a head or in trailers as they came: all but what gRPC keeps to itself, and Tieline's."""
    return [field for field in fields if field[0] not in RESERVED and not field[0].startswith((b":", _OWN_PREFIX))]


def metadata_of_hop(metadata: Headers) -> Headers:
    """Return metadata that may stand among the fields of an ordinary HTTP/2 message, less what would frame it."""
    return [field for field in own_metadata(metadata) if field[0] not in _FRAMING]


def metadata_to_fields(metadata: Headers) -> Headers:
    """Return metadata as fields of an HTTP message (G-59), without its type, its length and its trace context.

    Binary values have no form there; ``baggage`` is reduced to its first value; ``grpc-`` names get ``dapr-`` in front,
    except for those that belong to the hop; those named by ``connection`` go with it.
    """
    nominated = _nominated(metadata)
    fields: Headers = []
    has_baggage = False
    for field in metadata:
        name, value = field
        if name in _NO_FIELD or name in _PROTOCOL_OF_HOP or is_binary(name) or name.startswith(_OWN_PREFIX):
            continue
        if name in nominated:
            continue
        if name == b"baggage":
            if has_baggage:
                continue
            has_baggage = True
        elif name.startswith(b":"):
            if name not in _HTTP2:
                continue
            field = (_HTTP2[name], value)
        elif name.startswith(b"grpc-"):
            field = (b"dapr-" + name, value)
        fields.append(field)
    return fields


def _nominated(metadata: Headers) -> frozenset[bytes]:
    return frozenset(
        option.strip(b" \t").lower()
        for name, value in metadata
        if name == b"connection"
        for option in value.split(b",")
    )


def content_type_field(content_type: str, type_url: str) -> Headers:
    """Return the field that tells an HTTP end the type of a gRPC message's data (G-60); none if it has no type."""
    if type_url:
        return [(b"content-type", PROTOBUF_TYPE)]
    value = content_type.encode("utf-8", "surrogateescape").strip()
    return [(b"content-type", value)] if value and not _CONTROLS.search(value) else []


# ── internal maps ──


def is_grpc_origin(internal: Mapping[str, Iterable[str]]) -> bool:
    """Say whether an internal map holds metadata, rather than fields of an HTTP message (G-52)."""
    for value in internal.get("content-type", ()):
        return value.startswith("application/grpc")
    return False


def fields_to_internal(headers: Headers, *, length: int | None = None) -> InternalMap:
    """Return the fields of an HTTP message as an internal map, in canonical spelling (G-53, G-55, G-57).

    Identity fields keep their spelling, by which other sidecars look for them. Values that are no UTF-8 are taken for
    Latin-1, since a string of protobuf is UTF-8 (G-124).

    Args:
        length: Declared length of a request's body; ``None`` if it comes undeclared.
    """
    internal: InternalMap = {}
    for name, value in headers:
        if name.startswith(_OWN_PREFIX):
            continue
        spelt = _spelt(name)
        if spelt in internal:
            internal[spelt].append(_text(value))
        else:
            internal[spelt] = [_text(value)]
    if length:
        internal[_LENGTH] = [str(length)]
    return internal


def added_to_internal(internal: InternalMap, added: Headers) -> None:
    """Put what the caller's sidecar adds into the map of a request, in place (grpc.md §5.3).

    Identity replaces what is there under any spelling; forwarding fields are appended under their canonical name.
    """
    there = {name.lower() for name in internal}
    for name, value in added:
        if name in _FORWARDED:
            internal.setdefault(_FORWARDED[name], []).append(_text(value))
        else:
            text = _text(name)
            if text in there:
                for spelt in [one for one in internal if one.lower() == text]:
                    del internal[spelt]
            internal[text] = [_text(value)]


def metadata_to_internal(metadata: Headers, *, content_type: bytes = CONTENT_TYPE) -> InternalMap:
    """Return metadata as an internal map (G-54, G-56, G-58): lower-case names, binary values padded base64.

    Args:
        content_type: Put in if there is none, since by it the other end knows metadata; empty for trailers.
    """
    internal: InternalMap = {}
    for name, value in metadata:
        if name.startswith(_OWN_PREFIX):
            continue
        spelt = _text(name)
        values = [_padded(one) for one in decode_binary(value) or ()] if is_binary(name) else [_text(value)]
        if spelt in internal:
            internal[spelt] += values
        else:
            internal[spelt] = values
    if content_type and not is_grpc_origin(internal):
        internal["content-type"] = [content_type.decode("latin-1")]
    return internal


def from_internal(internal: Mapping[str, Iterable[str]]) -> Headers:
    """Return an internal map as fields: what they are, HTTP's or metadata, ``is_grpc_origin`` says.

    Names that differ only in case are joined, the client's values first (G-128). Left out are Tieline's own names, and
    what neither protocol could carry: names that are no token, values with control characters; and the length of an
    HTTP message, which ``declared_length`` reads.
    """
    fields: Headers = []
    later: Headers = []
    for name, values in internal.items():
        lower, is_lower = _read_name(name) if len(name) <= MAX_KNOWN_NAME_BYTES else _lower(name)
        if not lower:
            continue
        target = fields if is_lower else later
        for value in values:
            text = value.encode("utf-8", "surrogateescape").strip(b" \t")
            if not _CONTROLS.search(text):
                target.append((lower, text))
    return fields + later


def _lower(name: str) -> tuple[bytes, bool]:
    """Return the name of an entry as that of a field, empty if it is to be left out; and whether it was so already."""
    raw = name.encode("utf-8", "surrogateescape")
    lower = raw.lower()
    if not _is_name(lower) or lower.startswith(_OWN_PREFIX) or name == _LENGTH:
        return b"", True
    return lower, raw == lower


_read_name: Final = lru_cache(MAX_KNOWN_NAMES)(_lower)


def _spelt(name: bytes) -> str:
    return _known_spelling(name) if len(name) <= MAX_KNOWN_NAME_BYTES else _spelling(name)


def _spelling(name: bytes) -> str:
    return _text(name if name in _KEPT_LOWER else canonical(name))


_known_spelling: Final = lru_cache(MAX_KNOWN_NAMES)(_spelling)


def declared_length(internal: Mapping[str, Iterable[str]]) -> int | None:
    """Return the length of the body that a request's map declares; ``None`` if it declares none (G-60)."""
    for name in (_LENGTH, _LENGTH.lower()):
        for value in internal.get(name, ()):
            if value.isascii() and value.isdigit() and len(value) < 19:
                return int(value)
    return None


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _padded(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode()
