"""The token that callers of the API must show (H-122 to H-124)."""

from __future__ import annotations

import hmac
from typing import Final

from tieline.model import Request

HEADER: Final = b"dapr-api-token"
_EXEMPT: Final = frozenset({b"v1.0/healthz", b"v1.0/healthz/outbound"})


class Token:
    """Knows the token; compares in constant time, so that nobody can guess it byte by byte."""

    def __init__(self, token: str) -> None:
        self._token = token.encode("utf-8", "surrogateescape")

    def admits(self, request: Request) -> bool:
        """Say whether a request may pass: it shows the token, or asks for health. Of several, the first counts."""
        if request.verb == b"GET" and request.path.strip(b"/") in _EXEMPT:
            return True
        shown = next((value for name, value in request.headers if name == HEADER), b"")
        return hmac.compare_digest(shown, self._token)
