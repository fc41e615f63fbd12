"""How steps join: a step takes the call and the rest of the path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeAlias

from tieline.model import Invocation, Reply

Handler: TypeAlias = Callable[[Invocation], Awaitable[Reply]]
"""The rest of a path: answers a call or raises a ``TielineError``."""


class Middleware(Protocol):
    """One step."""

    async def __call__(self, call: Invocation, call_next: Handler) -> Reply:
        """Do this step's part and let ``call_next`` do the rest."""
        ...


def chain(*steps: Middleware, end: Handler) -> Handler:
    """Join steps to one handler; the first is the outermost."""
    handler = end
    for step in reversed(steps):
        handler = _join(step.__call__, handler)
    return handler


def _join(step: Callable[[Invocation, Handler], Coroutine[Any, Any, Reply]], rest: Handler) -> Handler:
    """Bind a step to what follows it; a closure costs a call a third of what ``functools.partial`` does."""

    def joined(call: Invocation) -> Coroutine[Any, Any, Reply]:
        return step(call, rest)

    return joined
