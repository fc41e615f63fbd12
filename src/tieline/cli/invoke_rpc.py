"""``tieline invoke --grpc``: an RPC of an app through a sidecar's gRPC API, JSON in and JSON out."""

from __future__ import annotations

import asyncio
import codecs
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from tieline.cli.api import NotReached, shown
from tieline.cli.call import Body
from tieline.cli.rpc import Broken, Channel, Ended
from tieline.cli.rpc_report import RpcReport
from tieline.cli.wait import Address
from tieline.errors import GrpcCode
from tieline.model import Headers
from tieline.wire.grpc.metadata import decode_binary, is_binary, may_be_sent
from tieline.wire.grpc.timeout import render_timeout

if TYPE_CHECKING:
    from tieline.cli.rpc_schema import Method

INVOKE_SERVICE: Final = b"/dapr.proto.runtime.v1.Dapr/InvokeService"
JSON_TYPE: Final = "application/json"
GRACE_S: Final = 0.5
"""So long after its deadline a call may still say itself that it is over."""
_SERVICE_METHOD: Final = re.compile(r"(/?)([A-Za-z_][\w.]*)/([A-Za-z_]\w*)")
_RESERVED: Final = re.compile(r"grpc-.*|:.*|te|content-length|connection|host")


class RpcCall(NamedTuple):
    """One call.

    Attributes:
        service, rpc: Of a method to be proxied to the app; ``service`` is empty for one that goes by ``InvokeService``.
        method: That was given.
        files: That describe the service; ``None`` to ask the app.
        body: What was given to be sent.
        typed: The body comes from standard input, so its messages go out as they come.
    """

    address: Address
    app_id: str
    method: str
    service: str
    rpc: str
    verb: str
    metadata: Headers
    content_type: str
    files: Sequence[bytes] | None
    body: Body | None
    typed: bool
    timeout_s: float | None


def service_and_method(method: str, *, described: bool) -> tuple[str, str]:
    """Return the two parts of ``pkg.Service/Method``; empty texts for what is none.

    A service without a package is known by a slash before it, or by being ``described``: else ``api/new`` is a method
    like any other that an app may know.
    """
    match = _SERVICE_METHOD.fullmatch(method)
    if match is None or not (described or match[1] or "." in match[2]):
        return "", ""
    return match[2], match[3]


def read_files(path: str | None) -> Sequence[bytes] | None:
    """Return what ``--proto`` describes; ``None`` if it was not given."""
    if path is None:
        return None
    from tieline.cli.rpc_schema import SchemaError, read_descriptors

    try:
        return read_descriptors(Path(path))
    except SchemaError as error:
        raise click.UsageError(f"--proto: {error}.") from error


def metadata_of(headers: Sequence[tuple[str, str]], app_id: str, token: str) -> tuple[Headers, str]:
    """Return the metadata to send, and the content type if one was given."""
    found: Headers = []
    content_type = ""
    names = {name.lower() for name, _ in headers}
    for given, value in headers:
        name = given.lower().encode()
        raw = value.encode("utf-8", "surrogateescape")
        if name == b"content-type":
            content_type = value
        elif _RESERVED.fullmatch(given.lower()):
            raise click.UsageError(f"{given} is set by the command itself.")
        elif is_binary(name):
            if decode_binary(raw) is None:
                raise click.UsageError(f"the value of {given} must be base64, since its name ends with -bin.")
            found.append((name, raw))
        elif not may_be_sent(name, raw):
            raise click.UsageError(f"{given}: gRPC takes letters, digits and _-. in names, printable ASCII in values.")
        elif value:
            found.append((name, raw))
    ours = [("dapr-app-id", app_id), ("dapr-api-token", token), ("user-agent", "tieline-invoke")]
    found += [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in ours
              if value and name not in names]  # fmt: skip
    return found, content_type


def perform(call: RpcCall, report: RpcReport) -> int:
    """Make the call and return what the report makes of it."""
    return asyncio.run(_Performance(call, report).run())


class _Performance:
    """One call underway; a ``rpc.Listener``."""

    def __init__(self, call: RpcCall, report: RpcReport) -> None:
        self._call = call
        self._report = report
        self._started = self._called = 0.0
        self._method: Method | None = None

    async def run(self) -> int:
        """Make the call."""
        # Not before it is used: protobuf takes its time.
        from tieline.cli.rpc_reflection import ReflectionFailed
        from tieline.cli.rpc_schema import SchemaError

        call, report = self._call, self._report
        self._started = self._called = time.perf_counter()
        channel = None
        limit = None if call.timeout_s is None else call.timeout_s + GRACE_S
        try:
            async with asyncio.timeout(limit):
                channel = await Channel.connect(call.address)
                if call.service:
                    ended = await self._call_service(channel)
                else:
                    ended = await self._invoke(channel)
                return self._over(ended)
        except NotReached as error:
            return report.not_reached(f"no sidecar answers: {error}.")
        except ReflectionFailed as error:
            return self._over(error.ended)
        except TimeoutError:
            return report.timed_out(f"the call through {shown(call.address)} was not over within {call.timeout_s:g} s")
        except _InputBroken as error:
            return report.broke_off(str(error))
        except SchemaError as error:
            raise click.UsageError(f"{' '.join(str(error).split())}.") from error
        except Broken as error:
            return report.broke_off(str(error))
        finally:
            if channel is not None:
                await channel.aclose()

    def _over(self, ended: Ended) -> int:
        late = ended.status.code == GrpcCode.DEADLINE_EXCEEDED and self._call.timeout_s is not None
        return self._report.ended(ended, time.perf_counter() - self._called, in_time=not late)

    async def _call_service(self, channel: Channel) -> Ended:
        from tieline.cli.rpc_reflection import Reflection
        from tieline.cli.rpc_schema import find_method

        call = self._call
        files = call.files
        if files is None:
            files = await Reflection(channel, call.metadata).files_of(call.service)
        method = self._method = find_method(files, call.service, call.rpc)
        messages: Sequence[bytes] | AsyncIterator[bytes]
        if call.typed and method.takes_many and call.body is not None:
            messages = _typed(call.body, method)
        else:
            messages = _messages(call.body, method)
        return await channel.call(method.path, call.metadata, messages, self, self._timeout())

    async def _invoke(self, channel: Channel) -> Ended:
        from tieline._generated.dapr.proto.common.v1 import common_pb2
        from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2

        call = self._call
        method, _, query = call.method.partition("?")
        message = common_pb2.InvokeRequest(method=method, content_type=call.content_type or JSON_TYPE)
        message.data.value = b"" if call.body is None else b"".join(call.body.pieces)
        message.http_extension.verb = common_pb2.HTTPExtension.Verb.Value(call.verb)  # type: ignore[assignment]
        message.http_extension.querystring = query
        request = dapr_pb2.InvokeServiceRequest(id=call.app_id, message=message)
        metadata = [field for field in call.metadata if field[0] != b"dapr-app-id"]
        return await channel.call(INVOKE_SERVICE, metadata, [request.SerializeToString()], self, self._timeout())

    def _timeout(self) -> bytes:
        """Return what is left of the time now that the call begins."""
        timeout_s = self._call.timeout_s
        self._called = time.perf_counter()
        return b"" if timeout_s is None else render_timeout(max(0.001, timeout_s - (self._called - self._started)))

    # ── what comes ─────────────────────────────────────────────────────────────────────────────────
    def begun(self, headers: Headers) -> None:
        """See ``rpc.Listener``."""
        self._report.begun(headers, time.perf_counter() - self._called)

    def message(self, data: bytes) -> None:
        """See ``rpc.Listener``."""
        from google.protobuf.message import DecodeError

        from tieline._generated.dapr.proto.common.v1 import common_pb2
        from tieline.cli.rpc_schema import SchemaError

        try:
            if self._method is not None:
                self._report.line(self._method.decode(data))
            else:
                self._report.piece(common_pb2.InvokeResponse.FromString(data).data.value)
        except (SchemaError, DecodeError) as error:
            raise Broken(str(error)) from error


class _InputBroken(Exception):
    """What was to be sent ended in an error, after the call had begun."""


def _messages(body: Body | None, method: Method) -> list[bytes]:
    """Return the messages that were given, of which there must be as many as the method takes."""
    from tieline.cli.rpc_schema import SchemaError, documents_of

    documents = [] if body is None else documents_of(b"".join(body.pieces))
    if not method.takes_many:
        documents = documents or ["{}"]
        if len(documents) > 1:
            raise SchemaError(f"{method.descriptor.full_name} takes one message, and {len(documents)} were given")
    return [method.encode(document) for document in documents]


async def _typed(body: Body, method: Method) -> AsyncIterator[bytes]:
    """Yield the messages that come on standard input, each once it is complete."""
    loop = asyncio.get_running_loop()
    # Of one place: whoever writes waits until the app takes it.
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(1)

    def put(item: bytes | Exception | None) -> None:
        asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

    threading.Thread(target=_read_documents, args=(body, method, put), name="body", daemon=True).start()
    while (item := await queue.get()) is not None:
        if isinstance(item, Exception):
            raise _InputBroken(str(item)) from item
        yield item


def _read_documents(body: Body, method: Method, put: Callable[[bytes | Exception | None], None]) -> None:
    """Read messages in a thread of their own, until the input or the call ends."""
    from tieline.cli.rpc_schema import Documents, SchemaError

    documents, decoder = Documents(), codecs.getincrementaldecoder("utf-8")()
    try:
        try:
            for piece in body.pieces:
                for document in documents.feed(decoder.decode(piece)):
                    put(method.encode(document))
            documents.check_end()
        except (SchemaError, OSError, ValueError) as error:
            put(error)
        else:
            put(None)
    except (RuntimeError, CancelledError):
        return  # the call is over: nobody takes the rest
