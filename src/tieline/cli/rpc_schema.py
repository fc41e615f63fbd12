"""What the methods of a gRPC service take and give: from a descriptor set or the app's own reflection, as JSON."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool

MAX_FILES: Final = 500
"""So many files may describe one service, what they import included."""
MAX_NAMED: Final = 20
"""So many services or methods are named when one is not found."""
COMPILE_HINT: Final = "protoc --include_imports --descriptor_set_out=app.binpb app.proto"
_OURS: Final = "google/protobuf/"
"""Files below it come with protobuf itself."""


class SchemaError(Exception):
    """A service, a method or a description of them that cannot be used; the text says why and what to do."""


class Method(NamedTuple):
    """One method of a service."""

    descriptor: MethodDescriptor
    pool: DescriptorPool

    @property
    def path(self) -> bytes:
        """As ``:path`` has it."""
        service = self.descriptor.containing_service
        return f"/{service.full_name}/{self.descriptor.name}".encode()

    @property
    def takes_many(self) -> bool:
        """Whether the client sends a stream."""
        return bool(self.descriptor.client_streaming)

    def encode(self, document: str) -> bytes:
        """Return a message that is given as JSON.

        Raises:
            SchemaError: It is none of this method's.
        """
        message = _class_of(self.descriptor.input_type)()
        try:
            json_format.Parse(document, message, descriptor_pool=self.pool)
        except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
            raise SchemaError(f"the data is no {self.descriptor.input_type.full_name}: {error}") from error
        return message.SerializeToString()

    def decode(self, data: bytes) -> str:
        """Return a message of an answer as JSON in one line.

        Raises:
            SchemaError: It is none of this method's.
        """
        kind = self.descriptor.output_type
        message = _class_of(kind)()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise SchemaError(f"what the app answered is no {kind.full_name}: {error}") from error
        return as_json(message, self.pool)


def _class_of(kind: Any) -> Callable[[], Message]:
    return message_factory.GetMessageClass(kind)


def as_json(message: Message, pool: DescriptorPool | None = None) -> str:
    """Return a message as JSON in one line; with an ``Any`` of an unknown type, or too deep, as its bytes."""
    try:
        return json_format.MessageToJson(message, indent=None, ensure_ascii=False, descriptor_pool=pool)
    except (TypeError, ValueError, RecursionError, json_format.Error):
        kind = message.DESCRIPTOR.full_name
        return json.dumps({"@message": kind, "@bytes": base64.b64encode(message.SerializeToString()).decode()})


# ── where descriptions come from ─────────────────────────────────────────────────────────────────────
def read_descriptors(path: Path) -> list[bytes]:
    """Return the files that a descriptor set holds.

    Raises:
        SchemaError: It cannot be read, or it is none.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SchemaError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if path.suffix == ".proto":
        hint = COMPILE_HINT.replace("app.proto", str(path))
        raise SchemaError(f"{path} is source; give a descriptor set, which this makes: {hint}")
    found = descriptor_pb2.FileDescriptorSet()
    try:
        found.ParseFromString(raw)
    except DecodeError as error:
        raise SchemaError(f"{path} is no descriptor set; this makes one: {COMPILE_HINT}") from error
    if not found.file:
        raise SchemaError(f"{path} describes nothing; this makes a descriptor set: {COMPILE_HINT}")
    return [file.SerializeToString() for file in found.file]


def find_method(files: Iterable[bytes], service: str, method: str) -> Method:
    """Return a method that files describe, each a serialised ``FileDescriptorProto``, in any order.

    Raises:
        SchemaError: They do not, or they do not fit together.
    """
    parsed = {}
    for raw in files:
        file = parse_file(raw)
        parsed[file.name] = file
    pool = _pool_of(parsed)
    try:
        found = pool.FindServiceByName(service)
    except KeyError as error:
        known = [f"{file.package}.{one.name}".lstrip(".") for file in parsed.values() for one in file.service]
        raise SchemaError(f"there is no service {service}; {_known('services', known)}") from error
    if method not in found.methods_by_name:
        known = [one.name for one in found.methods]
        raise SchemaError(f"{service} has no method {method}; {_known('methods', known)}")
    return Method(found.methods_by_name[method], pool)


def _known(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"there are no {what}"
    more = ", …" if len(names) > MAX_NAMED else ""
    return f"{what}: {', '.join(names[:MAX_NAMED])}{more}"


def parse_file(raw: bytes) -> descriptor_pb2.FileDescriptorProto:
    """Return the description of one file.

    Raises:
        SchemaError: It is none.
    """
    try:
        return descriptor_pb2.FileDescriptorProto.FromString(raw)
    except DecodeError as error:
        raise SchemaError(f"a description of a file is broken: {error}") from error


def missing_imports(files: Mapping[str, descriptor_pb2.FileDescriptorProto]) -> list[str]:
    """Return the names of imported files that are neither there nor a part of protobuf."""
    wanted = dict.fromkeys(name for file in files.values() for name in file.dependency)
    return [name for name in wanted if name not in files and not name.startswith(_OURS)]


def _pool_of(files: Mapping[str, descriptor_pb2.FileDescriptorProto]) -> DescriptorPool:
    if len(files) > MAX_FILES:
        raise SchemaError(f"{len(files)} files describe the service; {MAX_FILES} at most are read")
    if missing := missing_imports(files):
        raise SchemaError(f"what {missing[0]} holds is not described; make a descriptor set with --include_imports")
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        file = files.get(name) or _part_of_protobuf(name)
        for imported in file.dependency:
            add(imported)
        try:
            pool.AddSerializedFile(file.SerializeToString())
        except (TypeError, ValueError) as error:
            raise SchemaError(f"the description of {name} cannot be used: {error}") from error

    for name in files:
        add(name)
    return pool


def _part_of_protobuf(name: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    try:
        module = importlib.import_module(f"google.protobuf.{name.removeprefix(_OURS).removesuffix('.proto')}_pb2")
        module.DESCRIPTOR.CopyToProto(file)
    except (ImportError, ValueError) as error:
        raise SchemaError(f"{name} is not known; make a descriptor set with --include_imports") from error
    return file


# ── JSON documents one after the other ───────────────────────────────────────────────────────────────
class Documents:
    """Takes JSON documents out of text that comes in pieces."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, text: str) -> Iterator[str]:
        """Add text; yield the documents that are complete, each as it was written."""
        self._text = (self._text + text).lstrip()
        while self._text:
            try:
                _, end = self._decoder.raw_decode(self._text)
            except (json.JSONDecodeError, RecursionError):
                return  # the rest of it may still come
            yield self._text[:end]
            self._text = self._text[end:].lstrip()

    def check_end(self) -> None:
        """There is no more.

        Raises:
            SchemaError: What is left is no document.
        """
        if not self._text:
            return
        try:
            json.loads(self._text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SchemaError(f"the data is no JSON: {error}") from error


def documents_of(data: bytes) -> list[str]:
    """Return the JSON documents that stand in a text one after the other.

    Raises:
        SchemaError: There is something else.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError("the data is no JSON: it is not UTF-8") from error
    documents = Documents()
    found = list(documents.feed(text))
    documents.check_end()
    return found
