"""How steps join: a step takes the call and the rest of the path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeAlias

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
        handler = partial(step, call_next=handler)
    return handler
