"""Which of the sidecar's own APIs its app may use: the allow and deny lists of a Configuration (H-128, C-25, C-26)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

ALWAYS_OPEN: Final = "healthz"
"""The one API that no list can close (H-130)."""


class ApiLists:
    """The rules for one protocol; rules of the other one, or of none, do not count.

    Args:
        api: ``spec.api`` as written: lists of ``name``, ``version`` and ``protocol`` under ``allowed`` and ``denied``.
    """

    def __init__(self, api: Mapping[str, Any]) -> None:
        self._allowed = _http_keys(api.get("allowed") or ())
        self._denied = _http_keys(api.get("denied") or ())

    def is_open(self, name: str, group_version: str, route: str) -> bool:
        """Say whether an HTTP API is open.

        Args:
            name: Of its group, e.g. ``invoke``.
            group_version: Of the group, e.g. ``v1``.
            route: Its path without the leading slash, e.g. ``v1.0/invoke/``; a rule may be a beginning of it.
        """
        if name == ALWAYS_OPEN:
            return True
        group = f"{group_version}/{name}"
        if _matches(self._denied, group, route):
            return False
        return not self._allowed or _matches(self._allowed, group, route)


def _http_keys(rules: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(
        f"{rule.get('version') or ''}/{rule.get('name') or ''}"
        for rule in rules
        if str(rule.get("protocol") or "").lower() == "http"
    )


def _matches(keys: Sequence[str], group: str, route: str) -> bool:
    return any(key == group or route.startswith(key) for key in keys)
