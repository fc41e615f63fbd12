"""Callees inside this process: our own inbound end, announced as a sidecar is; a restart costs milliseconds."""

import asyncio
import os
import time
from pathlib import Path

from bench.errors import BenchError
from tieline.inbound.server import InboundServer
from tieline.middleware.observe import Observe
from tieline.model import Invocation, Reply
from tieline.names.registry import local_registry
from tieline.names.resolver import InstanceFacts
from tieline.net.http2_server import Http2Server
from tieline.net.listener import Listener
from tieline.net.tasks import spawn
from tieline.sidecar.listeners import INTERNAL_LIMITS, log

ANSWER = b"here"
CALL_WITHIN_S = 20.0


async def answer(call: Invocation) -> Reply:
    """Answer every call in the same way."""
    return Reply(200, [], ANSWER)


class Peer:
    """One callee."""

    def __init__(self, app_id: str, state: Path) -> None:
        self._app_id = app_id
        self._listener = Listener("internal", log)
        self._listener.bind_now("127.0.0.1", 0)
        facts = InstanceFacts(
            app_id=app_id,
            namespace="",
            host_address="127.0.0.1",
            http_port=0,
            grpc_port=0,
            internal_port=self._listener.port,
            app_port=0,
            pid=os.getpid(),
            started=time.time(),
        )
        self._names = local_registry(facts, environ={"XDG_STATE_HOME": str(state)}, spawn=spawn)

    async def start(self) -> None:
        """Serve, and let others find it."""
        server = InboundServer(answer, Observe(lambda record: None), app_id=self._app_id, namespace="")
        members = self._listener.members
        await self._listener.accept(lambda: Http2Server(server, limits=INTERNAL_LIMITS, native=True, members=members))
        await self._names.start()
        await self._names.announce()

    async def stop(self, *, gently: bool) -> None:
        """Leave as a sidecar that is told to, or drop all connections without a word."""
        if gently:
            await self._names.withdraw()
            await self._listener.drain()
        else:
            self._listener.abort()
        await self._names.aclose()


async def call(port: int, app_id: str) -> tuple[int, bytes]:
    """Call an app by the sidecar at ``port`` on a connection of its own; return status and body.

    Raises:
        BenchError: No answer came.
    """
    try:
        async with asyncio.timeout(CALL_WITHIN_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"GET /v1.0/invoke/{app_id}/method/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
            )
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            return int(head.split(b" ", 2)[1]), body
    except (OSError, TimeoutError, ValueError, IndexError) as error:
        raise BenchError(f"no answer to a call to {app_id}: {type(error).__name__} {error}") from error
