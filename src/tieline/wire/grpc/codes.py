"""gRPC codes and HTTP statuses: what one becomes where the other is spoken. The two tables are not inverse."""

from __future__ import annotations

from typing import Final

from tieline.errors import GrpcCode
from tieline.model import RpcStatus

DOMAIN: Final = "dapr.io"
"""Of the ``ErrorInfo`` in each failure that a sidecar words."""
MAX_ERROR_MESSAGE: Final = 63
"""So many bytes of an HTTP error's body are told in a gRPC error (G-18)."""

_CODES: Final[dict[int, GrpcCode]] = {
    400: GrpcCode.INTERNAL,
    401: GrpcCode.UNAUTHENTICATED,
    403: GrpcCode.PERMISSION_DENIED,
    404: GrpcCode.NOT_FOUND,
    408: GrpcCode.CANCELED,
    409: GrpcCode.ALREADY_EXISTS,
    429: GrpcCode.RESOURCE_EXHAUSTED,
    500: GrpcCode.UNKNOWN,
    501: GrpcCode.UNIMPLEMENTED,
    503: GrpcCode.UNAVAILABLE,
    504: GrpcCode.DEADLINE_EXCEEDED,
}
_STATUSES: Final[dict[int, int]] = {
    GrpcCode.OK: 200,
    GrpcCode.CANCELED: 408,
    GrpcCode.UNKNOWN: 500,
    GrpcCode.INVALID_ARGUMENT: 400,
    GrpcCode.DEADLINE_EXCEEDED: 504,
    GrpcCode.NOT_FOUND: 404,
    GrpcCode.ALREADY_EXISTS: 409,
    GrpcCode.PERMISSION_DENIED: 403,
    GrpcCode.RESOURCE_EXHAUSTED: 429,
    GrpcCode.FAILED_PRECONDITION: 400,
    GrpcCode.ABORTED: 409,
    GrpcCode.OUT_OF_RANGE: 400,
    GrpcCode.UNIMPLEMENTED: 501,
    GrpcCode.INTERNAL: 500,
    GrpcCode.UNAVAILABLE: 503,
    GrpcCode.DATA_LOSS: 500,
    GrpcCode.UNAUTHENTICATED: 401,
}

# The phrases of the IANA registry by the names that Go has for them, which clients of daprd may look for.
_PHRASES: Final = {
    100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
    200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
    205: "Reset Content", 206: "Partial Content", 207: "Multi-Status", 208: "Already Reported", 226: "IM Used",
    300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
    305: "Use Proxy", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
    409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed",
    413: "Request Entity Too Large", 414: "Request URI Too Long", 415: "Unsupported Media Type",
    416: "Requested Range Not Satisfiable", 417: "Expectation Failed", 418: "I'm a teapot",
    421: "Misdirected Request", 422: "Unprocessable Entity", 423: "Locked", 424: "Failed Dependency",
    425: "Too Early", 426: "Upgrade Required", 428: "Precondition Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 451: "Unavailable For Legal Reasons",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported", 506: "Variant Also Negotiates",
    507: "Insufficient Storage", 508: "Loop Detected", 510: "Not Extended", 511: "Network Authentication Required",
}  # fmt: skip


def code_of_http(status: int) -> GrpcCode:
    """Return the code that a gRPC client gets for an HTTP app's answer (grpc.md §9.1): 2xx is ``OK``."""
    return GrpcCode.OK if 200 <= status <= 299 else _CODES.get(status, GrpcCode.UNKNOWN)


def http_of_code(code: int) -> int:
    """Return the HTTP status that a gRPC app's code means (H-79): 500 for any number not in the table."""
    return _STATUSES.get(code, 500)


def reason_phrase(status: int) -> str:
    """Return what Go calls an HTTP status; empty if nothing."""
    return _PHRASES.get(status, "")


def http_failure(status: int, body: bytes) -> RpcStatus:
    """Return an HTTP app's failure as a gRPC client gets it (G-18).

    Args:
        status: Not 2xx.
        body: The beginning of the answer's body, at least ``MAX_ERROR_MESSAGE`` bytes if there are so many.
    """
    # "ignore" as the cut may go through a character, and a string of protobuf is UTF-8.
    said = body[:MAX_ERROR_MESSAGE].decode("utf-8", "ignore")
    metadata = {"http.code": str(status), "http.error_message": said}
    return with_error_info(code_of_http(status), reason_phrase(status), reason_phrase(status), metadata)


def with_error_info(code: int, message: str, reason: str, metadata: dict[str, str]) -> RpcStatus:
    """Return a status with one ``google.rpc.ErrorInfo`` of the domain ``dapr.io`` among its details."""
    from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
    from tieline._generated.google.rpc.status_pb2 import Status

    status = Status(code=code, message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    return RpcStatus(code, message, status.SerializeToString())


def render_status_body(status: RpcStatus) -> bytes:
    """Return a status that is no OK as a serialised ``google.rpc.Status``, its own code and message before others."""
    from google.protobuf.message import DecodeError

    from tieline._generated.google.rpc.status_pb2 import Status

    try:
        message = Status.FromString(status.details)
    except DecodeError:
        message = Status()
    message.code = status.code
    message.message = status.message
    return message.SerializeToString()


def read_status_body(code: int, body: bytes) -> RpcStatus:
    """Return the status whose code is known and whose rest is in a serialised ``google.rpc.Status``."""
    from google.protobuf.message import DecodeError

    from tieline._generated.google.rpc.status_pb2 import Status

    try:
        message = Status.FromString(body)
    except DecodeError:
        return RpcStatus(code, body[:MAX_ERROR_MESSAGE].decode("utf-8", "replace"))
    return RpcStatus(code, message.message, body if message.details else b"")
