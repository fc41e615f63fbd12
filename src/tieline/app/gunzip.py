"""Unpacks what an app packed unasked: a caller never gets a coding it did not name (H-52)."""

from __future__ import annotations

import zlib

from tieline.errors import AppBroken
from tieline.model import MAX_CHUNK, AnyBody, Body, Headers, Reply

_GZIP = 31
"""Window size of zlib plus 16: gzip's header and trailer are expected."""
_MEMBER = b"\x1f"
"""First byte of a member's header."""


class GunzippedBody:
    """A gzip body, unpacked piece by piece: however much it unpacks to, ``MAX_CHUNK`` bytes are in memory."""

    __slots__ = ("_body", "_over", "_packed", "_unpack", "trailers")

    def __init__(self, body: AnyBody) -> None:
        self._packed = body if isinstance(body, bytes) else b""
        self._body: Body | None = None if isinstance(body, bytes) else body
        self._unpack = zlib.decompressobj(_GZIP)
        self._over = False
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """See ``model.Body``."""
        while True:
            if not self._packed:
                self._packed = await self._next()
                if not self._packed:
                    return b""  # perhaps too early, which fails no call (H-70)
            if piece := self._piece():
                return piece

    def _piece(self) -> bytes:
        """Unpack some of what is there; may give nothing."""
        if self._unpack.eof:
            # One member follows another (RFC 1952 §2.2); what is none is dropped, as gzip itself does.
            if not self._over and self._packed.startswith(_MEMBER):
                self._unpack = zlib.decompressobj(_GZIP)
            else:
                self._over = True
        if self._over:
            self._packed = b""
            return b""
        try:
            piece = self._unpack.decompress(self._packed, MAX_CHUNK)
        except zlib.error as error:
            raise AppBroken(f"the answer is no gzip, as it says it is: {error}") from error
        self._packed = self._unpack.unconsumed_tail or self._unpack.unused_data
        return piece

    async def _next(self) -> bytes:
        body = self._body
        if body is None:
            return b""
        packed = await body.read()
        if not packed:
            self.trailers = body.trailers
            self._body = None
        return packed

    def abandon(self) -> None:
        """See ``model.Body``."""
        if self._body is not None:
            self._body.abandon()


def unpack_unasked(reply: Reply, verb: bytes, request: Headers) -> None:
    """Unpack a gzip answer in place if its request named no coding, no range, and is not HEAD."""
    if verb == b"HEAD" or reply.status == 206 or any(name in (b"accept-encoding", b"range") for name, _ in request):
        return
    reply.headers = [field for field in reply.headers if field[0] != b"content-encoding"]
    if reply.body or not isinstance(reply.body, bytes):
        reply.body = GunzippedBody(reply.body)
