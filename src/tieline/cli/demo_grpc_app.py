"""The gRPC app of ``tieline demo``: ``mathGrpc``, which adds two numbers as Dapr calls gRPC apps, by ``OnInvoke``."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

from tieline._generated.dapr.proto.common.v1 import common_pb2
from tieline.cli.demo_app import MAX_BODY, PATHS
from tieline.errors import GrpcCode
from tieline.model import Reply, Request, RpcStatus
from tieline.net.http2_server import Http2Server
from tieline.wire.grpc.messages import frame, only_message
from tieline.wire.grpc.status import CONTENT_TYPE, OK, render_status
from tieline.wire.http2 import Limits

ON_INVOKE: Final = b"/dapr.proto.runtime.v1.AppCallback/OnInvoke"
_TYPE: Final = (b"content-type", CONTENT_TYPE)


async def answer(request: Request) -> Reply:
    """Answer one RPC."""
    body = request.body
    if not isinstance(body, bytes):
        pieces: list[bytes] = []
        while (piece := await body.read()) and sum(map(len, pieces)) < MAX_BODY:
            pieces.append(piece)
        body = b"".join(pieces)
    if request.path != ON_INVOKE:
        return _failure(GrpcCode.UNIMPLEMENTED, f"mathGrpc has no {request.path.decode('latin-1')}")
    asked = common_pb2.InvokeRequest.FromString(only_message(body, MAX_BODY))
    if f"/{asked.method}" not in PATHS:
        return _failure(GrpcCode.NOT_FOUND, f"mathGrpc has no {asked.method}")
    try:
        numbers = json.loads(asked.data.value)
        total = numbers["arg1"] + numbers["arg2"]
    except (ValueError, KeyError, TypeError) as error:
        return _failure(GrpcCode.INVALID_ARGUMENT, f'send {{"arg1": 10, "arg2": 23}}: {error}')
    response = common_pb2.InvokeResponse(content_type="application/json")
    response.data.value = json.dumps(total).encode()
    return Reply(200, [_TYPE], frame(response.SerializeToString()), render_status(OK))


def _failure(code: GrpcCode, text: str) -> Reply:
    return Reply(200, [_TYPE, *render_status(RpcStatus(code, text))])


async def main(port: int) -> None:
    """Serve on loopback until the process is ended."""
    members: set[Any] = set()

    def connection() -> Http2Server:
        return Http2Server(answer, limits=Limits(), native=False, members=members)

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
