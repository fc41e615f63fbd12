"""What a resolver is: the contract, what it is told about this sidecar, and how one is made from a Configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from tieline.config.spelling import closest
from tieline.errors import ConfigError, StartError
from tieline.model import Endpoint, Target

NOT_BUILT: Final = frozenset(
    {"kubernetes", "consul", "hashicorp.consul", "nameformat", "aws.cloudmap"},
)
"""Components that Dapr knows and that do not exist here yet (N-1)."""

VERSIONS: Final = frozenset({"", "v0", "v1"})
"""Versions of a component; all mean the same (N-1)."""


class Resolver(Protocol):
    """Knows where apps are.

    Life: made from facts (no I/O), ``start``, any number of ``announce``, ``resolve`` and ``known``,
    ``withdraw``, ``aclose`` (idempotent, and also called after a failed ``start``).
    """

    @property
    def name(self) -> str:
        """What users read in hints and logs, e.g. ``local registry``."""
        ...

    async def start(self) -> None:
        """Make ready to resolve.

        Raises:
            StartError: The user configured this resolver, and it cannot work.
        """
        ...

    async def announce(self) -> None:
        """Let others find this app from now on. Idempotent; trouble is logged and tried again, not raised."""
        ...

    async def withdraw(self) -> None:
        """Let nobody find this app any more. Idempotent, also before ``announce``."""
        ...

    async def resolve(self, target: Target) -> Sequence[Endpoint]:
        """Return live endpoints, best first, at least one, in a stable order.

        Raises:
            UnknownTarget: There are none.
            ResolverFailed: It cannot be said whether there are any.
        """
        ...

    async def known(self) -> Sequence[str]:
        """Return the names that can be called now, as a caller writes them; for hints, so it never raises."""
        ...

    async def aclose(self) -> None:
        """Withdraw and let go of everything."""
        ...


class Spawn(Protocol):
    """Starts a background task, keeps a reference to it and reports its failure (``net.tasks.spawn``)."""

    def __call__(self, work: Coroutine[Any, Any, None], /, *, name: str) -> asyncio.Task[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    """What a resolver may tell others about this sidecar (N-5).

    Attributes:
        host_address: N-6's address, or the internal listen address if that is literally ``127.0.0.1``,
            ``localhost`` or ``[::1]``.
        internal_port: The port that is really held, not the one asked for.
        app_port: 0 without an app.
        started: Unix time in seconds.
        announced_address: Returns the IP literal by which others reach the internal port now; it may change with the
            network.
    """

    app_id: str
    namespace: str
    host_address: str
    http_port: int
    grpc_port: int
    internal_port: int
    app_port: int
    pid: int
    started: float
    announced_address: Callable[[], str] = lambda: "127.0.0.1"


class ResolverSpec(Protocol):
    """``spec.nameResolution`` of a Configuration, as the user wrote it."""

    @property
    def component(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def configuration(self) -> object:
        """Free-form YAML; ``None`` if left out."""
        ...


Factory: TypeAlias = Callable[[ResolverSpec, InstanceFacts, Spawn], Resolver]
"""Makes a resolver without I/O; raises ``ConfigError`` made by ``init_failure``."""


class BadResolver(ConfigError):
    """What a Configuration says of name resolution cannot be used.

    Attributes:
        cause: What is wrong, without where.
        remedy: What to do.
    """

    def __init__(self, text: str, cause: str, remedy: str) -> None:
        super().__init__(f"{text}: {cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


def create(spec: ResolverSpec, facts: InstanceFacts, spawn: Spawn, factories: Mapping[str, Factory]) -> Resolver:
    """Make the resolver that a user configured (N-1, N-2).

    An empty component means the default chain; whoever builds that does not ask here.

    Args:
        spec: What the user wrote.
        facts: What is announced.
        spawn: Starts the resolver's background work.
        factories: Makers by lower-case component name, e.g. ``builtin.RESOLVERS``.

    Raises:
        BadResolver: There is no such component, or its configuration cannot be used. Unlike ``daprd``, which
            starts and then fails every call, nothing starts with a resolver that cannot work.
    """
    factory = factories.get(spec.component.lower())
    if factory is not None and spec.version.lower() in VERSIONS:
        return factory(spec, facts, spawn)
    usable = ", ".join(sorted(factories))
    remedy = f"set spec.nameResolution.component to one of: {usable}; or leave nameResolution out"
    guess = closest(spec.component, factories)
    if factory is not None:
        remedy = "use version v1"
    elif guess:
        remedy = f'did you mean "{guess}"? {remedy[0].upper()}{remedy[1:]}'
    label = label_of(spec)
    problem = f"couldn't find name resolver {label}"
    if factory is None and spec.component.lower() in NOT_BUILT:
        problem = f"name resolver {label} is not built into this version of Tieline"
    where = f"[CREATE_COMPONENT_FAILURE]: initialization error occurred for nr ({label})"
    raise BadResolver(where, problem, remedy)


def label_of(spec: ResolverSpec) -> str:
    """Return ``<component>/<version>`` as messages name it."""
    return f"{spec.component}/{spec.version or 'v1'}"


def init_failure(label: str, cause: str, remedy: str) -> BadResolver:
    """Return the error for a configuration that cannot be used, in Dapr's words (N-2)."""
    return BadResolver(_init_where(label), cause, remedy)


def start_failure(label: str, cause: str, remedy: str) -> StartError:
    """Return the error for a resolver that is configured well and still cannot start (N-2)."""
    return StartError(f"{_init_where(label)}: {cause}; {remedy}")


def _init_where(label: str) -> str:
    return f"[INIT_COMPONENT_FAILURE]: initialization error occurred for nr ({label})"
