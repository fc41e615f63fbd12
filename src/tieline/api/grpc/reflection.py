"""Server reflection, v1 and v1alpha: what tools ask for the services of the API and their messages (G-1)."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

from tieline.api.grpc.calls import RpcCall, unreadable
from tieline.api.grpc.conversation import Conversation
from tieline.api.grpc.health import SERVICE as HEALTH_SERVICE
from tieline.api.health import Health
from tieline.config.grpc_apis import DAPR_SERVICE
from tieline.errors import GrpcCode
from tieline.model import Reply

V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"
_SERVICES: Final = (DAPR_SERVICE, HEALTH_SERVICE, V1, V1ALPHA)


class Reflection:
    """One version of the service; the messages of both are alike but for their package."""

    def __init__(self, health: Health, service: str) -> None:
        self._health = health
        self._service = service

    async def info(self, rpc: RpcCall) -> Reply:
        """``ServerReflectionInfo``: an answer to each question."""
        return Reply(200, [], Answers(rpc, self._health, self._service))


class Answers(Conversation):
    """The answers to one client."""

    def __init__(self, rpc: RpcCall, health: Health, service: str) -> None:
        super().__init__(rpc, health)
        self._service = service

    async def next(self) -> bytes | None:
        """See ``Conversation``."""
        message = await self.receive()
        return None if message is None else _answer(_messages(self._service), message)


class _Messages(NamedTuple):
    """What protobuf is needed for, imported at the first question.

    Attributes:
        pool: Knows all that can be asked for.
        error: Of a message that is none.
    """

    request: Any
    response: Any
    pool: Any
    error: type[Exception]


@cache
def _messages(service: str) -> _Messages:
    from google.protobuf.message import DecodeError

    from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2
    from tieline._generated.grpc.health.v1 import health_pb2
    from tieline._generated.grpc.reflection.v1 import reflection_pb2 as v1
    from tieline._generated.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
    from tieline._generated.pool import POOL

    for imported in (dapr_pb2, health_pb2, v1, v1alpha):  # so that it is found there
        assert imported.DESCRIPTOR.pool is POOL
    ours = v1 if service == V1 else v1alpha
    return _Messages(ours.ServerReflectionRequest, ours.ServerReflectionResponse, POOL, DecodeError)


def _answer(messages: _Messages, message: bytes) -> bytes:
    """Answer one question; what is not found is told in the answer.

    Raises:
        BadMessages: It is none.
    """
    try:
        request = messages.request.FromString(message)
    except messages.error as error:
        raise unreadable(error) from error
    answer = messages.response(valid_host=request.host)
    answer.original_request.CopyFrom(request)
    asked = request.WhichOneof("message_request")
    try:
        if asked == "list_services":
            for name in _SERVICES:
                answer.list_services_response.service.add(name=name)
        elif asked == "file_by_filename":
            _add_files(answer, messages.pool.FindFileByName(request.file_by_filename))
        elif asked == "file_containing_symbol":
            _add_files(answer, messages.pool.FindFileContainingSymbol(request.file_containing_symbol))
        elif asked == "all_extension_numbers_of_type":
            messages.pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
            answer.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
        elif asked == "file_containing_extension":
            raise KeyError(request.file_containing_extension.containing_type)  # none of our messages has any
        else:
            _tell(answer, GrpcCode.INVALID_ARGUMENT, "invalid MessageRequest")
    except KeyError as error:
        _tell(answer, GrpcCode.NOT_FOUND, f"not found: {str(error)[:256]}")
    data: bytes = answer.SerializeToString()
    return data


def _tell(answer: Any, code: GrpcCode, text: str) -> None:
    answer.error_response.error_code = int(code)
    answer.error_response.error_message = text


def _add_files(answer: Any, file: Any) -> None:
    """Put a file and all that it imports into an answer, itself first."""
    waiting, seen = [file], {file.name}
    while waiting:
        one = waiting.pop(0)
        answer.file_descriptor_response.file_descriptor_proto.append(one.serialized_pb)
        for imported in one.dependencies:
            if imported.name not in seen:
                seen.add(imported.name)
                waiting.append(imported)
