"""Proxied calls in one process: an app of grpcio's, sidecars' ends that take its calls, and who they told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from tieline.app.rpc_route import RpcRoute
from tieline.app.slots import Slots
from tieline.errors import TielineError, UnknownTarget
from tieline.inbound.proxied import ProxiedCalls
from tieline.model import CallRecord, Endpoint, Reply, Request, Target
from tieline.names.cache import NameCache
from tieline.net.deadlines import Deadlines
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Http2Server, Taker
from tieline.net.loop import serve
from tieline.outbound.peer import PEER_LIMITS
from tieline.outbound.proxy import PeerRoute, Proxy
from tieline.wire.grpc.proxied import Head, NewTraces
from tieline.wire.grpc.timeout import Timeout
from tieline.wire.http2 import Limits, Stream

Metadata = Sequence[tuple[str, str | bytes]]


class AnyNumber:
    """Stands for a channel that is always healthy and takes any number of calls."""

    unhealthy: Callable[[], TielineError] | None = None

    @property
    def slots(self) -> Slots | None:
        """See ``app.rpc_route.Channel``."""
        return None


class FixedNames:
    """A resolver that knows what it is told."""

    name = "fixed"

    def __init__(self) -> None:
        self.known_names: dict[str, list[Endpoint]] = {}
        self.asked = 0

    async def start(self) -> None: ...

    async def announce(self) -> None: ...

    async def withdraw(self) -> None: ...

    async def resolve(self, target: Target) -> Sequence[Endpoint]:
        self.asked += 1
        found = self.known_names.get(target.app_id)
        if not found:
            raise UnknownTarget(f"couldn't find service: {target.app_id}")
        return found

    async def known(self) -> Sequence[str]:
        return list(self.known_names)

    async def aclose(self) -> None: ...


class EchoApp(grpc.GenericRpcHandler):
    """An app of grpcio's that knows the four shapes, and tells what it saw.

    Attributes:
        seen: Path and metadata of each call.
        times: What each unary call had left when it came; ``None`` without a deadline.
        live, most: Calls in progress, and the most that were.
        ended: How many calls were over before their handler was.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[tuple[str, str | bytes]]]] = []
        self.live = self.most = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.left: list[float] = []
        self.times: list[float | None] = []
        self.port = 0
        self.server: grpc.aio.Server | None = None

    async def start(self, port: int = 0, *options: tuple[str, Any]) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *options])
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    async def stop(self, grace: float | None = None) -> None:
        assert self.server is not None
        await self.server.stop(grace)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        self.seen.append((path, list(handler_call_details.invocation_metadata)))
        kind = path.rpartition("/")[2]
        work = getattr(self, "_" + kind.lower(), None)
        if work is None:
            return None
        make = {
            "Unary": grpc.unary_unary_rpc_method_handler,
            "Error": grpc.unary_unary_rpc_method_handler,
            "Headers": grpc.unary_unary_rpc_method_handler,
            "Gate": grpc.unary_unary_rpc_method_handler,
            "Sleep": grpc.unary_unary_rpc_method_handler,
            "Big": grpc.unary_unary_rpc_method_handler,
            "ServerStream": grpc.unary_stream_rpc_method_handler,
            "ClientStream": grpc.stream_unary_rpc_method_handler,
            "Bidi": grpc.stream_stream_rpc_method_handler,
            "Early": grpc.stream_stream_rpc_method_handler,
            "Deaf": grpc.stream_stream_rpc_method_handler,
            "HeadersThenWait": grpc.stream_stream_rpc_method_handler,
        }[kind]
        return make(work)

    async def _unary(self, request: bytes, context: Any) -> bytes:
        self.times.append(context.time_remaining())
        return request

    async def _big(self, request: bytes, context: Any) -> bytes:
        return bytes(int(request))

    async def _error(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("app-trailer", "t"), ("end-bin", b"\xff\xfe"), ("tieline-cause", "forged")))
        await context.abort(grpc.StatusCode(_CODES[int(request)]), f"status {int(request)} ü")
        raise AssertionError

    async def _headers(self, request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata(
            (("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\0\1"), ("tieline-x", "1"))
        )
        context.set_trailing_metadata((("app-trailer", "t"), ("end-bin", b"\xff\xfe")))
        return request

    async def _headersthenwait(self, requests: AsyncIterator[bytes], context: Any) -> None:
        await context.send_initial_metadata((("x-early", "1"),))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _gate(self, request: bytes, context: Any) -> bytes:
        self.live += 1
        self.most = max(self.most, self.live)
        try:
            await self.gate.wait()
        finally:
            self.live -= 1
        return request

    async def _sleep(self, request: bytes, context: Any) -> bytes:
        self.left.append(context.time_remaining())
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return request

    async def _serverstream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        count, _, size = request.partition(b"x")
        for _ in range(int(count)):
            yield bytes(int(size or 1))

    async def _clientstream(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"|".join([message async for message in requests])

    async def _bidi(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            async for message in requests:
                yield message
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _early(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield b"early"
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)

    async def _deaf(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.live += 1
        await self.gate.wait()
        total = 0
        async for message in requests:
            total += len(message)
        yield str(total).encode()


_CODES = {code.value[0]: code.value for code in grpc.StatusCode}


class Ends:
    """The ends of two sidecars ``alpha`` (without an app) and ``gamma`` (with the app), in this process.

    Attributes:
        api: Port that alpha's app calls.
        own_api: Port that gamma's app calls.
        internal: Port at which gamma takes alpha's calls.
        records: What was told of calls, in the order of their ends.
    """

    def __init__(self, app_port: int, **changes: Any) -> None:
        self.names = FixedNames()
        self.records: list[CallRecord] = []
        self.app_port = app_port
        self.changes = changes
        self.api = self.own_api = self.internal = 0
        self.peers = Http2Pool(native=True, limits=PEER_LIMITS)
        self.apps = Http2Pool(native=False, more_when_full=False)
        self.members: set[Any] = set()
        self._servers: list[asyncio.AbstractServer] = []
        self.calls: ProxiedCalls

    async def start(self) -> None:
        changes = self.changes
        limit = changes.get("limit", 4 << 20)
        deadlines = Deadlines()
        names = NameCache([self.names], spawn=lambda work, *, name: asyncio.get_running_loop().create_task(work))
        app = RpcRoute(
            host="127.0.0.1",
            port=self.app_port,
            channel=changes.get("channel", AnyNumber()),
            pool=self.apps,
            limit=changes.get("callee_limit", limit),
            over=self.records.append,
        )
        token = changes.get("app_token", "")

        def make_calls(*, app_token: str) -> ProxiedCalls:
            return ProxiedCalls(
                app_id="gamma", namespace="default", app=app, over=self.records.append, deadlines=deadlines,
                traced=True, app_token=app_token,
            )  # fmt: skip

        self.make_calls = make_calls
        self.calls = make_calls(app_token=token)
        peers = PeerRoute(names, self.peers, limit=limit, over=self.records.append)

        def proxy(app_id: str) -> Taker:
            made = Proxy(
                app_id=app_id, namespace="default", peers=peers, app=app, over=self.records.append, deadlines=deadlines,
                new_traces=NewTraces(), traced=changes.get("traced", True), drop_token=changes.get("drop_token", False),
                app_token=token,
            )  # fmt: skip

            return _Api(made)

        self.internal = await self._listen(self.calls, native=changes.get("native", True))
        self.api = await self._listen(proxy("alpha"), native=False)
        self.own_api = await self._listen(proxy("gamma"), native=False)
        self.names.known_names["gamma"] = [Endpoint("127.0.0.1", self.internal)]

    async def _listen(self, taker: Taker, *, native: bool) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        limits = Limits(streams=4096, header_list=1 << 20, header_list_hard=2 << 20)
        self._servers.append(
            await serve(
                lambda: Http2Server(_nothing, limits=limits, native=native, members=self.members, taker=taker), sock
            )
        )
        return int(sock.getsockname()[1])

    async def aclose(self) -> None:
        for server in self._servers:
            server.close()
        for member in list(self.members):
            member.abort()
        self.peers.close()
        self.apps.close()


class _Api:
    """Lets every call in."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def take(self, connection: Http2Server, stream: Stream, request: Request, end: bool) -> bool:
        path = request.path if request.query is None else request.path + b"?" + request.query
        known = connection.h2.repeated
        head = Head(path, request.headers)
        plan = self.proxy.take(connection, stream, path, head, end, repeats=known is not None)
        if known is not None and plan is not None:
            known.plan = (plan, head.timeout if known.has_timeout else None)
        return True

    def repeat(self, connection: Http2Server, stream: Stream, plan: Any, tail: bytes, timeout: Timeout | None) -> bool:
        if tail:
            return False
        known, same = plan
        self.proxy.repeat(connection, stream, known, timeout or same)
        return True


async def _nothing(request: Request) -> Reply:
    request.drop_body()
    return Reply(404, [])


class Client:
    """A client of grpcio's, with a channel of its own."""

    def __init__(self, port: int, *, target: str = "gamma", options: Sequence[tuple[str, Any]] = ()) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), *options]
        )
        self._metadata: Metadata = (("dapr-app-id", target),) if target else ()

    def call(self, method: str, payload: Any, *metadata: tuple[str, str | bytes], timeout: float | None = 20) -> Any:
        """Begin a call; of what shape, its name tells."""
        kind: Any = {
            "ServerStream": self.channel.unary_stream,
            "ClientStream": self.channel.stream_unary,
            **dict.fromkeys(["Bidi", "Early", "Deaf", "HeadersThenWait"], self.channel.stream_stream),
        }.get(method, self.channel.unary_unary)
        path = method if method.startswith("/") else f"/test.Echo/{method}"
        return kind(path)(payload, metadata=(*self._metadata, *metadata), timeout=timeout)

    async def aclose(self) -> None:
        await self.channel.close()
