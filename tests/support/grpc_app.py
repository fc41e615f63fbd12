"""Apps and clients made with grpcio: what they answer is decided by the test, what they saw is written down.

``GrpcApp`` lives in the test's event loop, ``ThreadedGrpcApp`` in threads, for tests without a loop. As a process,
``python -m tests.support.grpc_app PORT`` is a ``GrpcApp`` with the answers it has from the beginning. Messages are
bytes everywhere, so that no service needs generated code.

What grpcio hides on both sides: ``content-type``, ``grpc-trace-bin``, ``:authority``; it shows codes that it does not
know as ``UNKNOWN``, and an app that reads when its call is cancelled may be told the end of the messages instead. Where
these matter, look at the frames (``tests.support.h2peer``).
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Self, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from tieline._generated.dapr.proto.common.v1 import common_pb2
from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2
from tieline._generated.google.rpc import error_details_pb2, status_pb2

Metadata = Sequence[tuple[str, str | bytes]]

ON_INVOKE: Final = "/dapr.proto.runtime.v1.AppCallback/OnInvoke"
HEALTH_CHECK: Final = "/dapr.proto.runtime.v1.AppCallbackHealthCheck/HealthCheck"
INVOKE_SERVICE: Final = "/dapr.proto.runtime.v1.Dapr/InvokeService"
GET_METADATA: Final = "/dapr.proto.runtime.v1.Dapr/GetMetadata"
SET_METADATA: Final = "/dapr.proto.runtime.v1.Dapr/SetMetadata"
SHUTDOWN: Final = "/dapr.proto.runtime.v1.Dapr/Shutdown"

UNARY: Final = "/test.Echo/Unary"
"""Answers with its message."""
SERVER_STREAM: Final = "/test.Echo/ServerStream"
"""Answers three times with its message, with a number after it."""
CLIENT_STREAM: Final = "/test.Echo/ClientStream"
"""Answers with its messages, joined by ``|``."""
BIDI: Final = "/test.Echo/Bidi"
"""Answers each message with itself, at once."""
HOLD: Final = "/test.Echo/Hold"
"""Reads its message, sends header metadata and then nothing until it is cancelled."""

DETAILS: Final = "grpc-status-details-bin"
STOP_S: Final = 1.0
LIMITS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


class Answer(NamedTuple):
    """What an RPC gets, once its request is over.

    Attributes:
        messages: In order; for ``ON_INVOKE`` see ``invoke_response``.
        details: Put into a ``google.rpc.Status`` beside code and text.
        delay_s: Waits so long before anything is sent.
        at_once: Does not read the request.
    """

    messages: Sequence[bytes] = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    details: Sequence[Message] = ()
    headers: Metadata = ()
    trailers: Metadata = ()
    delay_s: float = 0.0
    at_once: bool = False

    def all_trailers(self) -> list[tuple[str, str | bytes]]:
        """Return the trailer metadata with the details."""
        trailers = list(self.trailers)
        if self.details:
            status = status_pb2.Status(code=self.code.value[0], message=self.text)
            for detail in self.details:
                status.details.add().Pack(detail)
            trailers.append((DETAILS, status.SerializeToString()))
        return trailers


def invoke_response(data: bytes = b"", content_type: str = "", type_url: str = "") -> bytes:
    """Return an answer of ``ON_INVOKE``."""
    response = common_pb2.InvokeResponse(content_type=content_type)
    if data or type_url:
        response.data.value = data
        response.data.type_url = type_url
    return response.SerializeToString()


class Seen:
    """One RPC as an app saw it.

    Attributes:
        metadata: In order, names in lower case; binary values as bytes.
        time_left_s: Until its deadline, when it came; ``None`` without one.
        messages: Those that were read.
        half_closed: Whether the end of its messages was read.
        cancelled: It was ended by the other side, or by its deadline.
        over: Set once the app is done with it, however it ended.
    """

    def __init__(self, path: str, metadata: Iterable[tuple[str, str | bytes]], time_left_s: float | None) -> None:
        self.path = path
        self.metadata = [(name, value) for name, value in metadata]
        self.time_left_s = None if time_left_s is None or time_left_s > 1e6 else time_left_s
        self.messages: list[bytes] = []
        self.half_closed = False
        self.cancelled = False
        self.over = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Seen {self.path} {self.metadata} {self.messages}>"

    def values(self, name: str) -> list[str | bytes]:
        """Return all values of a name."""
        return values(self.metadata, name)

    @property
    def invoked(self) -> common_pb2.InvokeRequest:
        """The message of ``ON_INVOKE``."""
        return common_pb2.InvokeRequest.FromString(self.messages[0])


def values(metadata: Iterable[tuple[str, str | bytes]], name: str) -> list[str | bytes]:
    """Return all values of a name."""
    return [value for key, value in metadata if key == name]


class Exchange:
    """One RPC and the means to answer it step by step.

    Attributes:
        context: grpcio's own, for what is not here.
    """

    def __init__(self, seen: Seen, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self.seen = seen
        self.context = context

    async def read(self) -> bytes | None:
        """Return the next message; ``None`` at the end."""
        message: Any = await self.context.read()
        if message is grpc.aio.EOF:
            self.seen.half_closed = True
            return None
        self.seen.messages.append(message)
        return cast(bytes, message)

    async def read_all(self) -> list[bytes]:
        """Return all messages that come."""
        while await self.read() is not None:
            pass
        return self.seen.messages

    async def write(self, message: bytes) -> None:
        """Send a message; before the first, header metadata go out."""
        await self.context.write(message)

    async def begin(self, headers: Metadata = ()) -> None:
        """Send header metadata now."""
        await self.context.send_initial_metadata(_native(headers))

    async def answer(self, answer: Answer) -> None:
        """Send all of an answer; nothing may be sent after it."""
        if not answer.at_once:
            await self.read_all()
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        if answer.headers:
            await self.begin(answer.headers)
        for message in answer.messages:
            await self.write(message)
        trailers = _native(answer.all_trailers())
        if answer.code is grpc.StatusCode.OK:
            self.context.set_trailing_metadata(trailers)
        else:
            await self.context.abort(answer.code, answer.text, trailers)


def _native(metadata: Metadata) -> Any:
    return tuple(metadata)


Handler = Callable[[Exchange], Awaitable[None]]


async def _unary(exchange: Exchange) -> None:
    message = await exchange.read()
    await exchange.answer(Answer([message or b""]))


async def _server_stream(exchange: Exchange) -> None:
    message = await exchange.read() or b""
    await exchange.answer(Answer([message + b"%d" % number for number in range(3)]))


async def _client_stream(exchange: Exchange) -> None:
    await exchange.answer(Answer([b"|".join(await exchange.read_all())]))


async def _bidi(exchange: Exchange) -> None:
    while (message := await exchange.read()) is not None:
        await exchange.write(message)


async def _hold(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.begin([("x-held", "yes")])
    await asyncio.Event().wait()


async def _echo_invoked(exchange: Exchange) -> None:
    await exchange.answer(Answer([echoed(await exchange.read() or b"")]))


def echoed(message: bytes) -> bytes:
    """Return the answer of ``ON_INVOKE`` that holds what was sent."""
    request = common_pb2.InvokeRequest.FromString(message)
    return common_pb2.InvokeResponse(
        data=request.data if request.HasField("data") else None, content_type=request.content_type
    ).SerializeToString()


_BUILT_IN: Final[dict[str, Handler]] = {
    ON_INVOKE: _echo_invoked, UNARY: _unary, SERVER_STREAM: _server_stream, CLIENT_STREAM: _client_stream,
    BIDI: _bidi, HOLD: _hold,
}  # fmt: skip


class GrpcApp:
    """A server in the test's event loop.

    ``answers`` says what is answered, by an RPC's path, e.g. ``UNARY``, or, for ``ON_INVOKE``, by the invoked method.
    What is not in it: ``ON_INVOKE`` and the service ``test.Echo`` echo, a health check answers as ``healthy`` says,
    anything else is ``UNIMPLEMENTED``. ``max_streams`` is announced as ``MAX_CONCURRENT_STREAMS``.

    Attributes:
        seen: The RPCs that came, in order, without health checks.
        checked: How many health checks came.
        in_progress, most: RPCs now, and at most at once.
    """

    def __init__(self, answers: dict[str, Answer | Handler] | None = None, *, max_streams: int | None = None) -> None:
        self.answers: dict[str, Answer | Handler] = dict(answers or {})
        self._max_streams = max_streams
        self.healthy = True
        self.seen: list[Seen] = []
        self.checked = 0
        self.in_progress = 0
        self.most = 0
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._came = asyncio.Condition()

    async def start(
        self,
        port: int = 0,
        *,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        prepare: Callable[[grpc.aio.Server], None] | None = None,
    ) -> None:
        """Listen on loopback.

        ``prepare`` is given the server before it starts, to add services.
        """
        limits = [] if self._max_streams is None else [("grpc.max_concurrent_streams", self._max_streams)]
        self._server = grpc.aio.server(handlers=[_AioHandlers(self)], options=[*LIMITS, *limits, *options])
        if prepare is not None:
            prepare(self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()

    async def arrived(self, count: int = 1, within_s: float = 5.0) -> Seen:
        """Return the ``count``-th RPC that ever came, once it is there."""
        async with asyncio.timeout(within_s), self._came:
            await self._came.wait_for(lambda: len(self.seen) >= count)
        return self.seen[count - 1]

    async def serve(self, path: str, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Answer one RPC."""
        if path == HEALTH_CHECK and path not in self.answers:
            self.checked += 1
            if not self.healthy:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not healthy")
            await context.write(b"")
            return
        seen = Seen(path, cast(Iterable[tuple[str, str | bytes]], context.invocation_metadata()), _time_left(context))
        self.seen.append(seen)
        self.in_progress += 1
        self.most = max(self.most, self.in_progress)
        try:
            async with self._came:
                self._came.notify_all()
            await self._answer(Exchange(seen, context))
        except asyncio.CancelledError:
            seen.cancelled = True
            raise
        finally:
            self.in_progress -= 1
            seen.over.set()

    async def _answer(self, exchange: Exchange) -> None:
        path = exchange.seen.path
        given = self.answers.get(path)
        if given is None and path == ON_INVOKE:
            # Which answer is meant stands in the message.
            message = await exchange.read()
            given = self.answers.get(common_pb2.InvokeRequest.FromString(message or b"").method)
            if given is None:
                given = Answer([echoed(message or b"")])
        given = given or _BUILT_IN.get(path) or Answer(code=grpc.StatusCode.UNIMPLEMENTED, text=f"no {path} here")
        if isinstance(given, Answer):
            await exchange.answer(given)
        else:
            await given(exchange)

    async def aclose(self) -> None:
        """End at once; idempotent."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def wait(self) -> None:
        """Return once it has ended."""
        assert self._server is not None
        await self._server.wait_for_termination()


def _time_left(context: Any) -> float | None:
    return cast("float | None", context.time_remaining())


class _AioHandlers(grpc.GenericRpcHandler):
    """Every RPC as a stream of bytes both ways, which serves callers of all four shapes."""

    def __init__(self, app: GrpcApp) -> None:
        self._app = app

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        path = handler_call_details.method
        if path.startswith("/grpc.reflection."):
            return None

        async def serve(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await self._app.serve(path, context)

        return grpc.stream_stream_rpc_method_handler(serve)


class ThreadedGrpcApp:
    """A server in threads, for tests without an event loop; ``answers``, ``seen`` and ``healthy`` as of ``GrpcApp``.

    It answers with an ``Answer``, and else echoes, of ``test.Echo`` all but ``HOLD``.
    """

    def __init__(self, answers: dict[str, Answer] | None = None) -> None:
        self.answers = dict(answers or {})
        self.healthy = True
        self.seen: list[Seen] = []
        self.port = 0
        self._server: grpc.Server | None = None

    def start(self, port: int = 0, *, max_streams: int | None = None) -> None:
        """Listen on loopback."""
        limits = [] if max_streams is None else [("grpc.max_concurrent_streams", max_streams)]
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=[_ThreadHandlers(self)], options=[*LIMITS, *limits])
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def serve(self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer one RPC."""
        if path == HEALTH_CHECK:
            if not self.healthy:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not healthy")
            yield b""
            return
        seen = Seen(path, context.invocation_metadata(), _time_left(context))
        self.seen.append(seen)
        context.add_callback(seen.over.set)
        if path == BIDI:
            for message in requests:
                seen.messages.append(message)
                yield message
            seen.half_closed = True
            return
        answer = self.answers.get(path)
        if answer is None or not answer.at_once:
            seen.messages.extend(requests)
            seen.half_closed = True
        if answer is None and path == ON_INVOKE:
            answer = self.answers.get(seen.invoked.method) or Answer([echoed(seen.messages[0])])
        answer = answer or _plain_answer(path, seen.messages)
        if answer.delay_s:
            threading.Event().wait(answer.delay_s)
        if answer.headers:
            context.send_initial_metadata(tuple(answer.headers))
        yield from answer.messages
        context.set_trailing_metadata(tuple(answer.all_trailers()))
        if answer.code is not grpc.StatusCode.OK:
            context.abort(answer.code, answer.text)

    def close(self) -> None:
        """End at once; idempotent."""
        if self._server is not None:
            server, self._server = self._server, None
            server.stop(0).wait(STOP_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain_answer(path: str, messages: Sequence[bytes]) -> Answer:
    first = messages[0] if messages else b""
    if path == UNARY:
        return Answer([first])
    if path == SERVER_STREAM:
        return Answer([first + b"%d" % number for number in range(3)])
    if path == CLIENT_STREAM:
        return Answer([b"|".join(messages)])
    return Answer(code=grpc.StatusCode.UNIMPLEMENTED, text=f"no {path} here")


class _ThreadHandlers(grpc.GenericRpcHandler):
    def __init__(self, app: ThreadedGrpcApp) -> None:
        self._app = app

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        path = handler_call_details.method

        def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._app.serve(path, requests, context)

        return grpc.stream_stream_rpc_method_handler(serve)


class Outcome(NamedTuple):
    """How an RPC ended, for its client.

    Attributes:
        text: The message of its status.
        messages: Those that came before the end.
    """

    code: grpc.StatusCode
    text: str
    messages: list[bytes]
    headers: list[tuple[str, str | bytes]]
    trailers: list[tuple[str, str | bytes]]

    @property
    def message(self) -> bytes:
        """The only message of an RPC that ended well."""
        assert self.code is grpc.StatusCode.OK, f"{self.code}: {self.text}"
        assert len(self.messages) == 1, self.messages
        return self.messages[0]

    @property
    def invoked(self) -> common_pb2.InvokeResponse:
        """The answer of ``INVOKE_SERVICE``."""
        return common_pb2.InvokeResponse.FromString(self.message)

    @property
    def status(self) -> status_pb2.Status:
        """The status with its details; empty if there is none."""
        found = values(self.trailers, DETAILS)
        return status_pb2.Status.FromString(cast(bytes, found[0])) if found else status_pb2.Status()

    def header(self, name: str) -> list[str | bytes]:
        """Return all values of a name in the header metadata."""
        return values(self.headers, name)

    def trailer(self, name: str) -> list[str | bytes]:
        """Return all values of a name in the trailer metadata."""
        return values(self.trailers, name)


def read_details(value: Any) -> tuple[int, str, list[Message]]:
    """Return code, text and details of a ``DETAILS`` value, an ``ErrorInfo`` by its fields: its map has no order."""
    status = status_pb2.Status.FromString(value)
    details: list[Message] = []
    for one in status.details:
        info = error_details_pb2.ErrorInfo()
        details.append(info if one.Unpack(info) else one)
    return status.code, status.message, details


class GrpcClient:
    """A client in the test's event loop, on a connection of its own, to a port of loopback or a target of grpcio's."""

    def __init__(self, target: int | str, *, options: Sequence[tuple[str, Any]] = ()) -> None:
        address = target if isinstance(target, str) else f"127.0.0.1:{target}"
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self.channel = grpc.aio.insecure_channel(address, options=[*LIMITS[:2], *own, *options])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what is in progress and close."""
        await self.channel.close()

    def open(
        self, path: str, *, metadata: Metadata = (), timeout: float | None = None
    ) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        """Begin an RPC, to ``write``, ``read``, ``done_writing`` and ``cancel`` step by step."""
        kind: Any = self.channel.stream_stream(path)
        call: grpc.aio.StreamStreamCall[bytes, bytes] = kind(metadata=_native(metadata), timeout=timeout)
        return call

    async def call(self, path: str, *messages: bytes, metadata: Metadata = (), timeout: float | None = 20.0) -> Outcome:
        """Make an RPC of any shape: send all messages, read until the end.

        Once in a hundred times, grpcio's asyncio loses the header metadata of an RPC that fails without a message.
        """
        return await finish(begin(self.channel, path, messages, metadata, timeout))

    async def invoke(
        self,
        app_id: str,
        method: str,
        data: bytes = b"",
        *,
        verb: str | None = "POST",
        query: str = "",
        content_type: str = "",
        type_url: str = "",
        metadata: Metadata = (),
        timeout: float | None = 20.0,
    ) -> Outcome:
        """Make a call by ``InvokeService``; ``verb=None`` leaves the HTTP extension out."""
        message = common_pb2.InvokeRequest(method=method, content_type=content_type)
        if data or type_url:
            message.data.value = data
            message.data.type_url = type_url
        if verb is not None:
            message.http_extension.verb = common_pb2.HTTPExtension.Verb.Value(verb)  # type: ignore[assignment]
            message.http_extension.querystring = query
        request = dapr_pb2.InvokeServiceRequest(id=app_id, message=message)
        return await self.call(INVOKE_SERVICE, request.SerializeToString(), metadata=metadata, timeout=timeout)

    async def get_metadata(self, *, metadata: Metadata = ()) -> dapr_pb2.GetMetadataResponse:
        """Ask a sidecar for its metadata."""
        outcome = await self.call(GET_METADATA, b"", metadata=metadata)
        return dapr_pb2.GetMetadataResponse.FromString(outcome.message)

    async def set_metadata(self, key: str, value: str, *, metadata: Metadata = ()) -> Outcome:
        """Set a sidecar's metadata."""
        request = dapr_pb2.SetMetadataRequest(key=key, value=value)
        return await self.call(SET_METADATA, request.SerializeToString(), metadata=metadata)


def begin(
    channel: grpc.aio.Channel,
    path: str,
    messages: Sequence[bytes],
    metadata: Metadata,
    timeout: float | None,
    compression: grpc.Compression | None = None,
) -> Any:
    """Begin an RPC with all its messages.

    One message goes out together with the head: grpcio takes it for an error of its own if a stream is answered before
    its message could be sent.
    """
    kind: Any = channel.unary_stream(path) if len(messages) == 1 else channel.stream_stream(path)
    given = messages[0] if len(messages) == 1 else iter(messages)
    return kind(given, metadata=_native(metadata), timeout=timeout, compression=compression)


async def finish(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> Outcome:
    """Read an RPC to its end."""
    messages: list[bytes] = []
    try:
        async for message in call:
            messages.append(message)  # noqa: PERF401 - those before a failure are kept
    except grpc.aio.AioRpcError:
        pass
    return Outcome(
        await call.code(),
        await call.details() or "",
        messages,
        list(cast(Iterable[tuple[str, str | bytes]], await call.initial_metadata())),
        list(cast(Iterable[tuple[str, str | bytes]], await call.trailing_metadata())),
    )


async def main(port: int) -> None:
    """Serve on loopback until the process is ended."""
    app = GrpcApp()
    await app.start(port)
    print(f"listening on {app.port}", flush=True)
    await app.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
