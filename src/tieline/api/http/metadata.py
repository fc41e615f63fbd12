"""``/v1.0/metadata``: the metadata of the sidecar as JSON (H-136, H-137)."""

from __future__ import annotations

import json

from tieline.api.http.errors import PERCENT_HINT, api_error, text_error
from tieline.api.metadata import MAX_ATTRIBUTE_BYTES, Metadata
from tieline.errors import TielineError
from tieline.model import Cause, Reply, Request
from tieline.wire.method_path import BadEscape, decode_path


def show_metadata(metadata: Metadata) -> Reply:
    """Answer ``GET /v1.0/metadata``, on one line."""
    body = json.dumps(metadata.document(), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Reply(200, [(b"content-type", b"application/json")], body + b"\n")


async def put_attribute(metadata: Metadata, request: Request, raw_key: bytes) -> Reply:
    """Answer ``PUT /v1.0/metadata/<key>``."""
    try:
        key = decode_path(raw_key.replace(b"+", b" ")).decode("utf-8", "replace")
    except BadEscape as error:
        return text_error(400, f"400 Bad Request: {error}", Cause.BAD_REQUEST, PERCENT_HINT)
    try:
        value = await _read(request)
    except TielineError as error:
        return api_error(400, "ERR_BODY_READ", f"failed to read request body: {error.detail}")
    try:
        metadata.set_attribute(key, value.decode("utf-8", "replace"), size=len(raw_key) + len(value))
    except TielineError as error:
        return api_error(error.http_status, error.code, error.text)
    return Reply(204, [])


async def _read(request: Request) -> bytes:
    body = request.body
    if isinstance(body, bytes):
        return body
    pieces: list[bytes] = []
    size = 0
    while size <= MAX_ATTRIBUTE_BYTES and (piece := await body.read()):
        pieces.append(piece)
        size += len(piece)
    body.abandon()
    return b"".join(pieces)
