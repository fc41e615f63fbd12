"""Which web pages may call the API, and how browsers are told (H-125 to H-127)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tieline.model import Headers, Reply, Request

_VERBS: Final = frozenset({b"HEAD", b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_VARY: Final = (b"vary", b"Origin")
_PREFLIGHT_VARY: Final = (
    _VARY,
    (b"vary", b"Access-Control-Request-Method"),
    (b"vary", b"Access-Control-Request-Headers"),
)
_ASKED_VERB: Final = b"access-control-request-method"
_ASKED_HEADERS: Final = b"access-control-request-headers"
_ALLOW_ORIGIN: Final = b"access-control-allow-origin"
_name = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


class Cors:
    """The origins of ``--allowed-origins``; there is one of these only if there are any.

    Args:
        origins: Compared without regard to case, and not trimmed; one ``*`` in an origin stands for any text, one
            that is just ``*`` for all origins.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        items = [origin.lower().encode("utf-8", "surrogateescape") for origin in origins]
        self._all = b"*" in items
        self._exact = frozenset(item for item in items if b"*" not in item)
        self._patterns = tuple((item.partition(b"*")[0], item.partition(b"*")[2]) for item in items if b"*" in item)

    def allows(self, origin: bytes) -> bool:
        """Say whether pages of an origin may call."""
        if self._all:
            return True
        lower = origin.lower()
        return lower in self._exact or any(
            len(lower) >= len(start) + len(end) and lower.startswith(start) and lower.endswith(end)
            for start, end in self._patterns
        )

    def answer_preflight(self, request: Request) -> Reply | None:
        """Answer a browser that asks before it calls; ``None`` if this is an ordinary request."""
        if request.verb != b"OPTIONS":
            return None
        asked = dict(reversed(request.headers))  # of a repeated field, the first counts
        verb = asked.get(_ASKED_VERB, b"").upper()
        if not verb:
            return None
        headers: Headers = list(_PREFLIGHT_VARY)
        origin = asked.get(b"origin", b"")
        if origin and verb in _VERBS and self.allows(origin):
            headers += [self._allow_origin(origin), (b"access-control-allow-methods", verb)]
            names = _canonical(asked.get(_ASKED_HEADERS, b""))
            if names:
                headers.append((b"access-control-allow-headers", names))
        return Reply(200, headers)

    def mark(self, request: Request, reply: Reply) -> None:
        """Tell a browser whether its page may read an answer; in place, beside what the app says about it."""
        fields: Headers = [_VARY]
        origin = next((value for name, value in request.headers if name == b"origin"), b"")
        if origin and request.verb in _VERBS and self.allows(origin):
            fields.append(self._allow_origin(origin))
        reply.headers[:0] = fields

    def _allow_origin(self, origin: bytes) -> tuple[bytes, bytes]:
        return (_ALLOW_ORIGIN, b"*" if self._all else origin)


def _canonical(names: bytes) -> bytes:
    """Return header names as browsers are told them, ``X-One, Content-Type``; what is no name is left out."""
    parts = (part.strip() for part in names.split(b","))
    return b", ".join(b"-".join(word.capitalize() for word in part.split(b"-")) for part in parts if _name(part))
