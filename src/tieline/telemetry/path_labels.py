"""What a path counts as: the label of a request's or a call's path (O-23), worked out once and then remembered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from tieline.telemetry.families import OVERFLOW

if TYPE_CHECKING:
    from tieline.telemetry.path_patterns import PathPatterns

MAX_KNOWN: Final = 1024
"""Paths that are remembered with their labels; then the memory starts afresh."""
MAX_PATH_BYTES: Final = 256
"""Longer paths have no label of their own, unless a pattern matches them, and are not remembered."""
AS_THEY_ARE: Final = ("/dapr/config", "/dapr/metrics", "/dapr/subscribe", "/healthz")

_slashes: Final = re.compile("//+")


class PathLabels:
    """Labels by path, for one kind of path: that of requests at the HTTP API, or that of calls to apps.

    The path of a call is looked up in ``known`` with ``otherwise`` in its place; only if that gives ``None`` has
    ``find`` to work it out. Without patterns and without increased cardinality it never has.

    Args:
        increased: Whether a path that no pattern matches is its own label.
        encoded: Whether paths come percent-encoded and with their first slash, as in a request; else decoded and
            without it, as the method of a call.
    """

    def __init__(self, *, increased: bool, patterns: PathPatterns | None, encoded: bool) -> None:
        self._increased = increased
        self._patterns = patterns
        self._encoded = encoded
        self.known: dict[bytes, str] = {}
        self.otherwise: str | None = None if increased or patterns is not None else ""
        self._begin()

    def _begin(self) -> None:
        self.known.clear()
        self.known.update((path[0 if self._encoded else 1 :].encode(), path) for path in AS_THEY_ARE)

    def find(self, path: bytes) -> str:
        """Work out the label of a path that is not known."""
        decoded = unquote_to_bytes(path) if self._encoded else b"/" + path
        label = self._label(_slashes.sub("/", decoded.decode("utf-8", "replace")))
        if len(path) <= MAX_PATH_BYTES:
            if len(self.known) >= MAX_KNOWN:
                self._begin()
            self.known[path] = label
        return label

    def _label(self, path: str) -> str:
        if path in AS_THEY_ARE:
            return path
        if self._patterns is not None:
            matched = self._patterns.match(path)
            if matched is not None:
                return matched
        if not self._increased:
            return ""
        label = without_keys(path)
        return label if len(label) <= MAX_PATH_BYTES else OVERFLOW


def without_keys(path: str) -> str:
    """Return a path of one of Dapr's other APIs without the key or the id in it, of which there may be any number."""
    parts = path.split("/")
    if len(parts) < 5 or not parts[1].startswith("v1.0"):
        return path
    match parts[2]:
        case "state" | "secrets":
            return "/".join(parts[:4])
        case "actors":
            parts[4] = "{id}"
        case "workflows":
            parts[4] = "{instanceId}"
        case _:
            return path
    return "/".join(parts)
