"""A sidecar's own failure of an RPC, as its trailers explain it beside the status."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from tieline.errors import TielineError
from tieline.model import CallRecord, Cause, Headers, Hop, RpcStatus
from tieline.wire.errors_text import MAX_HINT_BYTES, explained

_OF_THE_CALLER = frozenset({Cause.BAD_REQUEST, Cause.CANCELLED})


def failure_fields(record: CallRecord) -> Headers:
    """Return the trailers that say why and where a call failed; none if it did not."""
    if record.cause is None:
        return []
    hop = record.hop
    if record.inbound and hop is Hop.CALLER and record.cause not in _OF_THE_CALLER:
        hop = Hop.PEER  # seen from the app that made the call
    return explained(record.cause, hop, record.hint)


def explain_by(said: Mapping[bytes, bytes], status: RpcStatus, record: CallRecord) -> None:
    """Write into the record what the trailers of another Tieline say about its failure.

    Args:
        said: The trailers, with a ``tieline-cause``.
        status: How the call ended.
        record: Of the call.
    """
    try:
        record.cause = Cause(said[b"tieline-cause"].decode("latin-1"))
    except ValueError:
        record.cause = Cause.PEER_PROTOCOL
    record.hop = Hop.APP if said.get(b"tieline-hop") == b"app" else Hop.PEER
    record.hint = unquote(said.get(b"tieline-hint", b"").decode("latin-1"))[:MAX_HINT_BYTES]
    record.detail = TielineError(status.message, grpc_code=status.code).detail
