"""What a request's path and verb say: which target is meant, which method, and how a method is written in a URL.

A method has one canonical spelling: percent-decoded once, cleaned, and checked. Access control and dispatch both
see that spelling, and it is encoded once on its way out, so that nothing is ever decoded twice.
"""

from __future__ import annotations

import binascii
import re
from enum import Enum
from typing import Final, NamedTuple

from tieline.errors import BadRequest, GrpcCode
from tieline.model import Headers, Target
from tieline.wire.errors_text import quote


class Via(Enum):
    """How the caller named the target; in this order of precedence (H-18)."""

    HEADER = "dapr-app-id"
    BASIC = "authorization"
    PATH = "path"


class Addressed(NamedTuple):
    """A target and a method, as the caller wrote them.

    Attributes:
        target: Text that names the target; bytes that are no UTF-8 as lone surrogates. Not empty.
        method: Percent-decoded, not yet cleaned. Without a leading slash for ``HEADER`` and ``BASIC``.
        via: Where the target was found.
    """

    target: str
    method: bytes
    via: Via


class MethodMissing(BadRequest):
    """The URL stops before a method: ``/v1.0/invoke/<id>/method`` (A-10).

    Attributes:
        target: The target that was named.
    """

    http_status = 400

    def __init__(self, target: str) -> None:
        super().__init__(
            "the URL stops before a method",
            hint="name a method after /method/, or end the URL with /method/ to call the app's root",
        )
        self.target = target


class BadEscape(ValueError):
    """A path has a percent sign that two hex digits do not follow (H-64)."""


# Looking for one byte as a number is ten times as fast as looking for it as ``bytes``.
_PERCENT: Final = 0x25
_PLUS: Final = 0x2B
_DOT: Final = 0x2E
_SLASH: Final = 0x2F

# ── the target ──

_PREFIX: Final = b"/v1.0/invoke/"
_PREFIX_SLASHES: Final = re.compile(rb"/+v1\.0/+invoke/+")
_METHOD: Final = b"/method/"
_STOPS_BEFORE_METHOD: Final = b"/method"
_ADDRESSING: Final = frozenset({b"dapr-app-id", b"authorization"})
_BASIC: Final = b"Basic "


def parse_invoke(path: bytes, headers: Headers) -> Addressed | None:
    """Find the target and the method of a request that is no other API's (H-18 to H-26).

    Args:
        path: Raw path, percent-encoded, without query.
        headers: The request's fields.

    Returns:
        ``None`` if nothing names a target, which is answered 404 (H-22).

    Raises:
        MethodMissing: The URL names a target, but stops before a method.
        BadEscape: See ``decode_path``.
    """
    for name, _ in headers:
        if name in _ADDRESSING:
            named = _named_by_header(headers)
            if named is not None:
                return Addressed(named[0], decode_path(path).lstrip(b"/"), named[1])
            break
    if _PERCENT in path:
        path = decode_path(path)
    start = len(_PREFIX)
    # The first one splits (H-26); a target cannot be empty.
    end = path.find(_METHOD, start)
    if end <= start or path[start] == _SLASH or not path.startswith(_PREFIX):
        prefix = _PREFIX_SLASHES.match(path)
        if prefix is None:
            return None
        start = prefix.end()
        end = path.find(_METHOD, start)
    if end > start:
        return Addressed(_target_text(path[start:end]), path[end + len(_METHOD) :], Via.PATH)
    end = len(path) - len(_STOPS_BEFORE_METHOD)
    if end > start and path.endswith(_STOPS_BEFORE_METHOD):
        raise MethodMissing(_target_text(path[start:end]))
    return None


def _named_by_header(headers: Headers) -> tuple[str, Via] | None:
    """Return what the header form or the basic form names; of a repeated field the first counts."""
    app_id = next((value for name, value in headers if name == b"dapr-app-id"), b"")
    if app_id:
        return _text(app_id), Via.HEADER
    authorization = next((value for name, value in headers if name == b"authorization"), b"")
    if not authorization.startswith(_BASIC):
        return None
    try:
        decoded = binascii.a2b_base64(authorization[len(_BASIC) :], strict_mode=True)
    except binascii.Error:
        return None
    user, *rest = decoded.split(b":")
    if user.lower() != b"dapr-app-id" or len(rest) != 1 or not rest[0]:
        return None
    return _text(rest[0]), Via.BASIC


def _target_text(once_decoded: bytes) -> str:
    """Decode a target a second time, as a query is (H-25); text that cannot be decoded stays."""
    if (_PERCENT in once_decoded or _PLUS in once_decoded) and not has_bad_escape(once_decoded):
        once_decoded = decode_path(once_decoded.replace(b"+", b" "))
    return _text(once_decoded)


def _text(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogateescape")


def is_url(target: str) -> bool:
    """Tell whether a target is itself a URL, not a name (H-27 a)."""
    return target.startswith(("http://", "https://"))


def read_target(text: str, own_namespace: str) -> Target:
    """Say who is meant; a URL has no app ID and no namespace (H-27).

    Raises:
        BadRequest: See ``split_target``.
    """
    return Target("", "", text) if is_url(text) else split_target(text, own_namespace)


def split_target(text: str, own_namespace: str) -> Target:
    """Split ``<id>`` or ``<id>.<namespace>`` (H-28). An empty id or namespace is only looked up, not refused.

    Raises:
        BadRequest: There are two dots or more.
    """
    dot = text.find(".")
    if dot < 0:
        return Target(text, own_namespace, text)
    if text.find(".", dot + 1) >= 0:
        hint = "address an app as <app-id> or <app-id>.<namespace>"
        if ":/" in text:
            hint += ", and what is outside the mesh by a URL that begins with http:// or https://"
        raise BadRequest(f"invalid app id {text}", hint=hint)
    return Target(text[:dot], text[dot + 1 :], text)


# ── the method ──

_MAY_BE_UNCLEAN: Final = re.compile(rb"/[/.]")
_REFUSED: Final = bytes(range(0x20)) + b"\x7f#?"
_FORBIDDEN: Final = re.compile(rb"[#?\x00]")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


def clean(method: bytes) -> bytes:
    """Clean a method lexically (H-30).

    Repeated slashes count once, ``.`` segments go, ``..`` takes the segment before it away, a trailing slash
    goes; ``..`` above the root is dropped. A leading slash stays unless nothing follows it (H-35, H-36).
    """
    if not method or (method[0] != _DOT and method[-1] != _SLASH and _MAY_BE_UNCLEAN.search(method) is None):
        return method
    kept: list[bytes] = []
    for segment in method.split(b"/"):
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment and segment != b".":
            kept.append(segment)
    cleaned = b"/".join(kept)
    return b"/" + cleaned if cleaned and method[0] == _SLASH else cleaned


def check(method: bytes) -> None:
    """Refuse a cleaned method that could be read as something else further on (H-32).

    Raises:
        BadRequest: It has ``#``, ``?``, NUL, or a control character.
    """
    if len(method.translate(None, _REFUSED)) == len(method):
        return
    if _FORBIDDEN.search(method):
        reason = "forbidden character"
    else:
        control = _CONTROL.search(method)
        assert control is not None
        reason = f"control character at position {control.start()}"
    raise BadRequest(f"invalid method: method contains {reason}: {quote(method)}", grpc_code=GrpcCode.INVALID_ARGUMENT)


def normalise_rpc(method: bytes) -> bytes:
    """Return the method of a gRPC message checked and cleaned (G-14). It was not decoded, and is not.

    Unlike that of a URL it is checked before it is cleaned, and its root stays ``/``.

    Raises:
        BadRequest: See ``check``.
    """
    check(method)
    return clean(method) or (b"/" if method.startswith(b"/") else b"")


def normalise_route(path: bytes) -> bytes:
    """Return the path by which a request is routed (H-24): still percent-encoded, cleaned, no trailing slash."""
    cleaned = clean(path)
    return cleaned if cleaned.startswith(b"/") else b"/" + cleaned


# ── percent-encoding ──

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_BYTE_OF: Final = {
    bytes((high, low)): bytes.fromhex(chr(high) + chr(low)) for high in _HEX_DIGITS for low in _HEX_DIGITS
}
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9a-fA-F]{2})")

# As Go's URL type writes a path: the second set needs no encoding either, but when anything else in the path
# does, these are encoded along with it (H-110 as recorded: ``a"b*c`` reaches the app as ``a%22b%2Ac``).
_ALWAYS_PLAIN: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~$&+,/:;=@"
_PLAIN_AMONG_PLAIN: Final = b"!'()*[]"
_PLAIN: Final = re.compile(rb"[%s%s]*" % (re.escape(_ALWAYS_PLAIN), re.escape(_PLAIN_AMONG_PLAIN)))
_NEEDS_ENCODING: Final = re.compile(rb"[^%s%s%%]" % (re.escape(_ALWAYS_PLAIN), re.escape(_PLAIN_AMONG_PLAIN)))
_ENCODED: Final = [bytes((byte,)) if byte in _ALWAYS_PLAIN else b"%%%02X" % byte for byte in range(256)]


def bad_escape(path: bytes) -> bytes | None:
    """Return the first percent sign that lacks its two hex digits, with what stands in their place; else ``None``."""
    bad = _BAD_ESCAPE.search(path) if _PERCENT in path else None
    return None if bad is None else path[bad.start() : bad.start() + 3]


def has_bad_escape(path: bytes) -> bool:
    """Tell whether a percent sign lacks its two hex digits, which makes a request malformed (H-64)."""
    return bad_escape(path) is not None


def decode_path(path: bytes) -> bytes:
    """Percent-decode a path once; ``%2F`` becomes a slash like any other (H-31).

    Raises:
        BadEscape: A percent sign lacks its two hex digits.
    """
    if _PERCENT not in path:
        return path
    first, *rest = path.split(b"%")
    decoded = [first]
    for part in rest:
        byte = _BYTE_OF.get(part[:2])
        if byte is None:
            raise BadEscape(f"invalid URL escape {quote(b'%' + part[:2])}")
        decoded.append(byte)
        decoded.append(part[2:])
    return b"".join(decoded)


def encode_path(method: bytes) -> bytes:
    """Percent-encode a method (H-110); ``decode_path`` gives it back. Plain ASCII is returned as it is.

    A literal percent sign becomes ``%25``, so that the next reader decodes no further than the caller meant
    (H-34). No slash is put in front.
    """
    if _PLAIN.fullmatch(method):
        return method
    if _NEEDS_ENCODING.search(method) is None:
        return method.replace(b"%", b"%25")
    return b"".join([_ENCODED[byte] for byte in method])


def encode_escaped(method: bytes) -> bytes:
    """Write a method that was not percent-decoded into a path, as gRPC clients give it (G-66): escapes stay.

    Whether its percent signs are escapes is for ``check_percent`` to say.
    """
    if _NEEDS_ENCODING.search(method) is None:
        return method
    return b"".join([b"%" if byte == _PERCENT else _ENCODED[byte] for byte in method])


_NOT_IN_QUERY: Final = re.compile(rb"[^!-~]|#")
_ENDS_A_LINE: Final = re.compile(rb"[\x00-\x20\x7f]")


def encode_query(query: bytes) -> bytes:
    """Percent-encode what may not stand in a query (G-66): gRPC clients may put anything there. Escapes stay."""
    return _NOT_IN_QUERY.sub(lambda match: b"%%%02X" % match[0][0], query)


def safe_query(query: bytes) -> bytes:
    """Percent-encode what would end a request line; a query that came over HTTP has none of it and stays as it is."""
    return _ENDS_A_LINE.sub(lambda match: b"%%%02X" % match[0][0], query)


def check_percent(method: bytes, url_prefix: str, query: bytes = b"") -> str | None:
    """Tell why a method's literal percent sign cannot be sent on; ``None`` if it can (H-34).

    Dapr fails such a method when it builds the URL, and its clients' tests ask for that, so it stays refused.

    Args:
        method: Cleaned method.
        url_prefix: What stands before the method's slash, e.g. ``http://127.0.0.1:8080``.
        query: Raw query, shown in the text.

    Returns:
        The whole detail for a call to the own app or to an endpoint; a callee's sidecar puts
        ``error invoking app channel: `` in front and makes it an ``Internal`` status.
    """
    bad = bad_escape(method)
    if bad is None:
        return None
    url = url_prefix.encode("utf-8", "surrogateescape")
    url += method if method[:1] == b"/" else b"/" + method
    if query:
        url += b"?" + query
    return f"parse {quote(url)}: invalid URL escape {quote(bad)}"


# ── the verb ──

PLAIN_VERBS: Final = frozenset([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE"])
"""Verbs that reach the app as they are."""
_VERBS: Final = {verb: verb for verb in PLAIN_VERBS}


def app_verb(verb: bytes) -> bytes:
    """Return the verb that the app will see (H-39): upper case; ``POST`` for one that Dapr does not know.

    Raises:
        BadRequest: The verb is ``CONNECT`` or ``NONE``.
    """
    known = _VERBS.get(verb)
    if known is not None:
        return known
    upper = verb.upper()
    if upper in (b"CONNECT", b"NONE"):
        raise BadRequest("invalid HTTP verb", grpc_code=GrpcCode.INVALID_ARGUMENT)
    return _VERBS.get(upper, b"POST")
