"""May a failed call be sent again, and when? One table for everything that happens without a policy.

| what happened                                         | again?                                             |
|-------------------------------------------------------|----------------------------------------------------|
| nothing of the request left                           | any verb, if its body can be sent (again)          |
| the peer certainly did not process it                 | the same; the first time at once                   |
| the peer is another app's, or another namespace's      | the same, at once, at another instance             |
| lost after sending, before the first byte of an answer| idempotent verbs, if the body can be sent again    |
| cut off with a code, or any answer begun              | never                                              |
"""

from __future__ import annotations

from typing import Final

from tieline.errors import PeerLost, PeerRefused, PeerUnreachable, TielineError, UnknownTarget, WrongPeer

MAX_RETRIES: Final = 3
"""Tries beyond the first (H-89)."""
PAUSE_S: Final = 1.0
"""From the beginning of a try to that of the next: what the try itself took counts."""
IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


def pause_before_retry(error: TielineError, verb: bytes, retries: int, *, body_ready: bool) -> float | None:
    """Return the seconds from the beginning of the last try to the next, or ``None`` to give up.

    Args:
        error: What the last try ended with.
        verb: Verb of the request.
        retries: Tries made beyond the first.
        body_ready: The body can be sent from its beginning: it is whole, kept, or nothing of it was read.
    """
    if retries >= MAX_RETRIES or not body_ready:
        return None
    if isinstance(error, WrongPeer):
        return 0.0  # another instance is tried, and no time makes that one the right one
    if isinstance(error, PeerRefused):
        return 0.0 if retries == 0 else PAUSE_S
    if isinstance(error, PeerUnreachable):
        return PAUSE_S
    if isinstance(error, UnknownTarget):
        return PAUSE_S if error.lately_known else None
    if isinstance(error, PeerLost):
        return PAUSE_S if error.before_answer and verb in IDEMPOTENT else None
    return None
