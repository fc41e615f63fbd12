"""The trace that a request belongs to: checked, continued or begun on the way in, told on the way out (H-55, H-56)."""

from __future__ import annotations

from tieline.model import Headers, Reply
from tieline.wire.baggage import check
from tieline.wire.headers import Noted
from tieline.wire.trace_context import Context, IdSource, add_to_answer, continue_or_start


class Tracer:
    """The tracing step of the HTTP API.

    Attributes:
        enabled: False only if the sampling rate is 0: then trace headers are ordinary headers (O-1).
    """

    def __init__(self, *, enabled: bool, new_ids: IdSource) -> None:
        self.enabled = enabled
        self._new_ids = new_ids

    def begin(self, noted: Noted | None, *, checked: bool = True) -> tuple[Context, bytes | None]:
        """Return the context that holds from here on, and the baggage that the answer repeats.

        ``checked``: False on the paths of health, whose baggage is nobody's business.

        Raises:
            BadBaggage: The request is to be refused.
        """
        if noted is None:
            return continue_or_start(None, None, self._new_ids), None
        baggage = noted.get(b"baggage")
        joined = check(baggage) if baggage and checked else None
        return continue_or_start(noted.get(b"traceparent"), noted.get(b"tracestate"), self._new_ids), joined

    def complete(self, reply: Reply, context: Context, baggage: bytes | None) -> None:
        """Tell the caller, in place; what the app says about its trace stays."""
        add_to_answer(reply.headers, context)
        if baggage is not None and not any(name == b"baggage" for name, _ in reply.headers):
            reply.headers.append((b"baggage", baggage))


def put_back(headers: Headers, noted: Noted) -> None:
    """Give a request its trace headers back as they came, where nobody traces."""
    for name in (b"traceparent", b"tracestate"):
        headers += [(name, value) for value in noted.get(name, ())]
