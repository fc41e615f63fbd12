"""The verbs of the HTTP extension, by which a gRPC client calls an HTTP app (G-13)."""

from __future__ import annotations

from typing import Final

from tieline.errors import BadRequest, GrpcCode

VERBS: Final = (b"", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")
"""By their numbers; 0 is for none."""
_REFUSED: Final = frozenset({b"", b"CONNECT"})


def name_of_verb(number: int | None) -> bytes:
    """Return the verb that a number stands for; empty if none, or none that is known."""
    return VERBS[number] if number is not None and 0 <= number < len(VERBS) else b""


def http_verb(number: int | None) -> bytes:
    """Return the verb with which an HTTP app is called; ``None`` is a call without an HTTP extension.

    Raises:
        BadRequest: There is no such call over HTTP.
    """
    if number is None:
        raise BadRequest(
            "missing HTTP extension field",
            hint="an HTTP app is called with a verb: set http_extension.verb of the request",
            grpc_code=GrpcCode.INVALID_ARGUMENT,
        )
    verb = name_of_verb(number)
    if verb in _REFUSED:
        raise BadRequest(
            "invalid HTTP verb", hint="set http_extension.verb to GET or another", grpc_code=GrpcCode.INVALID_ARGUMENT
        )
    return verb
