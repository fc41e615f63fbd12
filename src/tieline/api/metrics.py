"""The metrics server: whatever is asked of it, it answers with all metrics as Prometheus reads them (H-139)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

from tieline.config.settings import LOOPBACK
from tieline.errors import StartError
from tieline.model import MAX_CHUNK, Headers, Reply, Request
from tieline.net.http1_server import Http1Server, ServerOptions
from tieline.net.listener import Listener
from tieline.telemetry.exposition import MEDIA_TYPE, render
from tieline.telemetry.families import Shown
from tieline.wire.http2 import Limits

log = logging.getLogger("dapr.runtime")

DRAIN_S: Final = 1.0
"""How long a scrape in progress may hold up the end of the process."""
_OPTIONS: Final = ServerOptions(max_head=16384, max_body=None, http2=False, http2_limits=Limits())
_LEVEL: Final = 1
"""The text repeats itself so much that more effort gains little."""
_GZIP: Final = 31
_takes_gzip: Final = re.compile(
    rb"(?:^|,)\s*gzip\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[^,]*)?(?:,|$)", re.IGNORECASE
).search


class MetricsServer:
    """The listener, from ``bind`` to ``drain``.

    Args:
        shown: As of ``MetricsApi``.
    """

    def __init__(self, shown: Callable[[], Sequence[Shown]]) -> None:
        self._api = MetricsApi(shown)
        self.listener = Listener("metrics", log)
        self._where = ""

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self.listener.port

    def bind(self, address: str | None, port: int) -> None:
        """Bind the port, at once or not at all (C-91).

        Args:
            address: Empty for all interfaces, ``None`` for loopback.
            port: 0 for any free one.

        Raises:
            StartError: It is taken, or the address none of this host's.
        """
        first = LOOPBACK[0] if address is None else address
        try:
            self.listener.bind_now(first, port)
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
            raise StartError(
                f"failed to listen on {first}:{port}: listen tcp {first}:{port}: bind: {reason}; choose another port "
                "with --metrics-port, 0 for any free one, or do without by --enable-metrics=false"
            ) from error
        if address is None:
            with contextlib.suppress(OSError):
                self.listener.bind_now(LOOPBACK[1], self.port)
        self._where = f"{first}:{self.port}/"

    async def serve(self) -> None:
        """Begin to answer."""
        members = self.listener.members
        await self.listener.accept(lambda: Http1Server(self._api, _OPTIONS, members))
        log.info("metrics server started on %s", self._where)

    async def drain(self) -> None:
        """End, after scrapes in progress; one that is not read does not count."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self.listener.drain()
        self.listener.abort()


class MetricsApi:
    """Answers every request on the metrics port, whatever its verb and path.

    Args:
        shown: Returns the families.
    """

    def __init__(self, shown: Callable[[], Sequence[Shown]]) -> None:
        self._shown = shown

    async def __call__(self, request: Request) -> Reply:
        """Answer one request; see ``net.http2_server.Handler``."""
        request.drop_body()
        headers: Headers = [(b"content-type", MEDIA_TYPE)]
        pack = None
        if any(name == b"accept-encoding" and _takes_gzip(value) for name, value in request.headers):
            headers.append((b"content-encoding", b"gzip"))
            pack = zlib.compressobj(_LEVEL, wbits=_GZIP)
        pieces = _gathered(render(sorted(self._shown(), key=lambda family: family.name)))
        first = next(pieces)
        second = next(pieces, None)
        if second is not None:
            return Reply(200, headers, ScrapeBody(chain((first, second), pieces), pack))
        return Reply(200, headers, first if pack is None else pack.compress(first) + pack.flush())


class ScrapeBody:
    """A long text, rendered while it is sent: however many series there are, calls are not kept waiting for them."""

    __slots__ = ("_pack", "_pieces", "trailers")

    def __init__(self, pieces: Iterator[bytes], pack: Any) -> None:
        self._pieces = pieces
        self._pack = pack
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """See ``model.Body``."""
        for piece in self._pieces:
            await asyncio.sleep(0)
            if data := piece if self._pack is None else self._pack.compress(piece):
                return bytes(data)
        pack, self._pack = self._pack, None
        return b"" if pack is None else bytes(pack.flush())

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._pieces = iter(())
        self._pack = None


def _gathered(texts: Iterator[str]) -> Iterator[bytes]:
    """Yield the texts as bytes, in pieces of nearly ``MAX_CHUNK``; at least one piece."""
    gathered: list[bytes] = []
    size = 0
    for text in texts:
        data = text.encode()
        if gathered and size + len(data) > MAX_CHUNK:
            yield b"".join(gathered)
            gathered, size = [], 0
        gathered.append(data)
        size += len(data)
    yield b"".join(gathered)
