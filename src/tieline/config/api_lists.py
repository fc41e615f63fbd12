"""Which of the sidecar's own APIs its app may use: the allow and deny lists of a Configuration (H-128, C-25, C-26)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tieline.config.grpc_apis import GROUPS, RUNTIME_PREFIX, path_of
from tieline.config.spelling import closest

ALWAYS_OPEN: Final = "healthz"
"""The one API that no list can close (H-130)."""
APIS: Final = (
    "invoke", "state", "publish", "bindings", "secrets", "actors", "metadata", "configuration", "lock", "unlock",
    "crypto", "subtlecrypto", "workflows", "healthz", "jobs", "shutdown", "conversation", "subscribe",
)  # fmt: skip
"""Names that a rule can have."""


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


class RuleFault(NamedTuple):
    """Why a rule may do nothing.

    Attributes:
        is_certain: It matches nothing, whatever is asked for.
        hint: What would be right; empty if there is no guess.
    """

    is_certain: bool
    text: str
    hint: str


def rule_faults(name: str, version: str, protocol: str) -> Iterator[RuleFault]:
    """Return what is wrong with a rule of a list (C-25, C-26)."""
    if protocol.lower() not in ("http", "grpc") or (protocol.lower() == "grpc" and protocol != "grpc"):
        yield RuleFault(True, f"a rule whose protocol is {protocol!r} matches nothing", "http, grpc")
    if not version:
        yield RuleFault(True, "a rule without version matches nothing", "such as v1")
    if name.partition("/")[0] not in APIS:
        guess = closest(name, APIS)
        yield RuleFault(False, f"there is no API {name!r}", f'did you mean "{guess}"?' if guess else "")
    elif protocol == "grpc" and version and f"{name}/{version}" not in GROUPS:
        versions = [group.partition("/")[2] for group in GROUPS if group.startswith(f"{name}/")]
        text = f"gRPC has no API {name} of version {version}: a rule with it matches nothing"
        yield RuleFault(True, text, ", ".join(versions))


class GrpcLists:
    """The rules for the gRPC API. Only those count whose protocol is written ``grpc`` (S-57).

    Args:
        api: As of ``ApiLists``.

    Attributes:
        allows_nothing: There are rules that allow, none of which is one for gRPC: then all of it is open (S-58).
    """

    def __init__(self, api: Mapping[str, Any]) -> None:
        allowed = api.get("allowed") or ()
        self._allowed = _grpc_paths(allowed)
        self._denied = _grpc_paths(api.get("denied") or ())
        self.allows_nothing = bool(allowed) and not self._allowed

    @property
    def restrict(self) -> bool:
        """Whether they close anything."""
        return bool(self._allowed or self._denied)

    def is_open(self, path: bytes) -> bool:
        """Say whether an RPC may be called, by its path. Only those of Dapr's own packages are restricted (S-59)."""
        if not path.startswith(RUNTIME_PREFIX):
            return True
        return path not in self._denied and (not self._allowed or path in self._allowed)


def _grpc_paths(rules: Sequence[Mapping[str, Any]]) -> frozenset[bytes]:
    """Return the RPCs that rules name; a group that does not exist names none."""
    groups = [
        f"{rule.get('name') or ''}/{rule.get('version') or ''}" for rule in rules if rule.get("protocol") == "grpc"
    ]
    return frozenset(path_of(name) for group in groups for name in GROUPS.get(group, ()))


def _http_keys(rules: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(
        f"{rule.get('version') or ''}/{rule.get('name') or ''}"
        for rule in rules
        if str(rule.get("protocol") or "").lower() == "http"
    )


def _matches(keys: Sequence[str], group: str, route: str) -> bool:
    return any(key == group or route.startswith(key) for key in keys)
