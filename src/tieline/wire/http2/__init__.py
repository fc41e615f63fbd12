"""HTTP/2 without sockets: bytes to events and back, for both ends of a connection (RFC 9113, RFC 8441)."""

from tieline.wire.http2.connection import Connection, ConnectionFault, Listener, Stream
from tieline.wire.http2.frames import NATIVE_FORM, NATIVE_SETTING, PREFACE, ErrorCode, Setting
from tieline.wire.http2.limits import Limits

__all__ = [
    "NATIVE_FORM",
    "NATIVE_SETTING",
    "PREFACE",
    "Connection",
    "ConnectionFault",
    "ErrorCode",
    "Limits",
    "Listener",
    "Setting",
    "Stream",
]
