"""An app's own description of its services: gRPC server reflection, asked through a sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from tieline._generated.grpc.reflection.v1 import reflection_pb2
from tieline.cli.rpc import Broken, Channel, Ended
from tieline.cli.rpc_schema import COMPILE_HINT, MAX_FILES, MAX_NAMED, SchemaError, missing_imports, parse_file
from tieline.errors import GrpcCode
from tieline.model import Headers

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

_OWN: Final = "grpc.reflection."
# The messages of both versions are the same but for their package.
_PATHS: Final = tuple(b"/grpc.reflection.%s.ServerReflection/ServerReflectionInfo" % v for v in (b"v1", b"v1alpha"))


class ReflectionFailed(Exception):
    """The call that asks for it failed: the app, or a sidecar on the way, answered otherwise."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.status.message)
        self.ended = ended


class _First:
    """Keeps the first message of an answer; what follows it answers nothing."""

    def __init__(self) -> None:
        self.data: bytes | None = None

    def begun(self, headers: Headers) -> None:
        """See ``rpc.Listener``."""

    def message(self, data: bytes) -> None:
        """See ``rpc.Listener``."""
        if self.data is None:
            self.data = data


class Reflection:
    """Asks one app.

    Args:
        metadata: Sent with each question; they say which app.
    """

    def __init__(self, channel: Channel, metadata: Headers) -> None:
        self._channel = channel
        self._metadata = metadata
        self._path = _PATHS[0]

    async def files_of(self, service: str) -> list[bytes]:
        """Return the files that describe a service, with all that they import.

        Raises:
            SchemaError: The app has no such service, or no reflection.
            ReflectionFailed: The call failed.
            Broken: The connection did.
        """
        files: dict[str, FileDescriptorProto] = {}
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service))
        if answer.error_response.error_code == GrpcCode.NOT_FOUND:
            raise SchemaError(f"the app has no service {service}; {await self._services()}")
        self._keep(answer, files)
        asked: set[str] = set()
        while wanted := [name for name in missing_imports(files) if name not in asked]:
            for name in wanted:
                asked.add(name)
                self._keep(await self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=name)), files)
        return [file.SerializeToString() for file in files.values()]

    @staticmethod
    def _keep(answer: reflection_pb2.ServerReflectionResponse, files: dict[str, FileDescriptorProto]) -> None:
        if answer.HasField("error_response"):
            raise SchemaError(f"the app's reflection says: {answer.error_response.error_message}")
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = parse_file(raw)
            files.setdefault(file.name, file)
        if len(files) > MAX_FILES:
            raise SchemaError(f"more than {MAX_FILES} files describe the service")

    async def _services(self) -> str:
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [one.name for one in answer.list_services_response.service if not one.name.startswith(_OWN)]
        shown = ", ".join(names[:MAX_NAMED])
        return f"it has: {shown}" if names else "it names none"

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        ended, message = await self._call(request.SerializeToString())
        if ended.status.code == GrpcCode.UNIMPLEMENTED and self._path == _PATHS[0]:
            self._path = _PATHS[1]
            ended, message = await self._call(request.SerializeToString())
        if ended.status.code == GrpcCode.UNIMPLEMENTED:
            raise SchemaError(
                "the app does not describe its services (it has no server reflection); "
                f"describe them by --proto app.binpb, which this makes: {COMPILE_HINT}"
            )
        if ended.status.code:
            raise ReflectionFailed(ended)
        if message is None:
            raise Broken("the app's reflection answered nothing")
        try:
            return reflection_pb2.ServerReflectionResponse.FromString(message)
        except DecodeError as error:
            raise Broken(f"what the app's reflection answered cannot be read: {error}") from error

    async def _call(self, message: bytes) -> tuple[Ended, bytes | None]:
        answer = _First()
        ended = await self._channel.call(self._path, self._metadata, [message], answer)
        return ended, answer.data
