"""HTTP/1.1, strict and without I/O: bytes to messages and messages to bytes.

The data path of the sidecar, so it is written for speed, and the border where a smuggled request would cross,
so nothing is guessed: what could be read in two ways is refused. One shape for both directions::

    parser.receive(data)                     # as the bytes come
    head = parser.next_head()                # None: more bytes are needed
    body = parser.take_whole_body()          # the small message, whole at once; None: not all here yet
    piece = parser.read_body(MAX_CHUNK)      # the big one, piece by piece, until parser.body_done

Bytes beyond the message stay in the parser (``pending``). A parser that raised ``BadMessage`` is finished, and so
is its connection.
"""

from __future__ import annotations

from tieline.wire.http1.fields import BadMessage, is_trailer_name
from tieline.wire.http1.reader import Framing
from tieline.wire.http1.request import PREFACE, RequestHead, RequestParser, looks_like_preface
from tieline.wire.http1.response import Ending, ResponseHead, ResponseParser
from tieline.wire.http1.writer import (
    CHUNKED,
    CONTINUE,
    LAST_CHUNK,
    chunk,
    declared,
    last_chunk,
    request_framing,
    request_head,
    response_head,
)

__all__ = [
    "CHUNKED",
    "CONTINUE",
    "LAST_CHUNK",
    "PREFACE",
    "BadMessage",
    "Ending",
    "Framing",
    "RequestHead",
    "RequestParser",
    "ResponseHead",
    "ResponseParser",
    "chunk",
    "declared",
    "is_trailer_name",
    "last_chunk",
    "looks_like_preface",
    "request_framing",
    "request_head",
    "response_head",
]
