"""How a redirect is followed: which answers lead on, with what verb, and which fields go along (H-66, H-159)."""

from __future__ import annotations

from typing import Final, NamedTuple

from tieline.model import Headers
from tieline.wire.url import Url

MAX_REQUESTS: Final = 10
"""Requests made for one call, the first included; then the call fails."""

_FOLLOWED: Final = frozenset({301, 302, 303})
# They describe a body that does not go along.
_OF_THE_BODY: Final = frozenset(
    {b"content-type", b"content-encoding", b"content-language", b"content-location", b"digest", b"content-digest"}
)
_CREDENTIALS: Final = frozenset(
    {b"authorization", b"cookie", b"cookie2", b"www-authenticate", b"dapr-api-token", b"proxy-authorization"}
)


class Step(NamedTuple):
    """The next request of a call that is redirected; it has no body."""

    verb: bytes
    url: Url
    headers: Headers


def location(status: int, headers: Headers) -> bytes | None:
    """Return where an answer leads that is to be followed; ``None`` for any other answer."""
    if status in _FOLLOWED:
        for name, value in headers:
            if name == b"location":
                return value or None
    return None


def follow(
    verb: bytes, here: Url, target: bytes, there: Url, headers: Headers, *, had_body: bool, own_names: frozenset[bytes]
) -> Step:
    """Return the request that follows a redirect.

    What was meant for one host goes to no other: credentials stay behind, and so do the fields that the endpoint's
    own resource sets. They stay behind, too, where the next request would not be encrypted any more.

    Args:
        verb: Of the request that was redirected.
        here: Where it went, with ``target``.
        there: Where it is sent.
        headers: Its fields.
        had_body: It had a body, which does not go along.
        own_names: Names of the fields that the endpoint's resource sets.
    """
    next_verb = verb if verb in (b"GET", b"HEAD") else b"GET"
    gone: frozenset[bytes] = _OF_THE_BODY if had_body or next_verb != verb else frozenset()
    secure = here.scheme == "https" and there.scheme == "http"
    if here.host != there.host or secure:
        gone |= _CREDENTIALS | own_names
    kept = [field for field in headers if field[0] not in gone]
    if there.authorization and not any(name == b"authorization" for name, _ in kept):
        kept.append((b"authorization", there.authorization))
    return Step(next_verb, there, kept)


def with_referer(headers: Headers, here: Url, target: bytes, there: Url) -> Headers:
    """Return the fields with ``referer``: where the request came from, without user info, and never out of HTTPS.

    One that the caller sent stays as it is.
    """
    if (here.scheme == "https" and there.scheme == "http") or any(name == b"referer" for name, _ in headers):
        return headers
    return [*headers, (b"referer", f"{here.scheme}://".encode() + here.authority + target)]
