"""A service ``shop.Orders`` as people describe theirs: its descriptors, and an app that serves it with reflection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, json_format, message_factory, timestamp_pb2
from grpc_reflection.v1alpha import reflection

from tests.support.grpc_app import Answer, Exchange, GrpcApp
from tieline._generated.google.rpc import error_details_pb2

SERVICE: Final = "shop.Orders"
METHODS: Final = (("New", False, False), ("Watch", False, True), ("Sum", True, False), ("Talk", True, True))
"""Names, and whether client and server stream."""
_FIELD: Final = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {"string": _FIELD.TYPE_STRING, "int64": _FIELD.TYPE_INT64, "bytes": _FIELD.TYPE_BYTES}


def _message(file: descriptor_pb2.FileDescriptorProto, name: str, fields: Mapping[str, str]) -> None:
    message = file.message_type.add(name=name)
    for number, (field, kind) in enumerate(fields.items(), 1):
        made = message.field.add(name=field, number=number, label=_FIELD.LABEL_OPTIONAL)
        if kind in _TYPES:
            made.type = _TYPES[kind]
        else:
            made.type, made.type_name = _FIELD.TYPE_MESSAGE, kind


def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Return the descriptions, those that are imported last."""
    goods = descriptor_pb2.FileDescriptorProto(name="shop/goods.proto", package="shop", syntax="proto3")
    _message(goods, "Item", {"name": "string", "amount": "int64"})
    orders = descriptor_pb2.FileDescriptorProto(name="shop/orders.proto", package="shop", syntax="proto3")
    orders.dependency.extend(["shop/goods.proto", "google/protobuf/timestamp.proto", "google/protobuf/any.proto"])
    _message(orders, "Order", {
        "order_id": "int64", "item": ".shop.Item", "at": ".google.protobuf.Timestamp", "raw": "bytes",
        "extra": ".google.protobuf.Any",
    })  # fmt: skip
    service = orders.service.add(name="Orders")
    for name, client, server in METHODS:
        service.method.add(name=name, input_type=".shop.Order", output_type=".shop.Order",
                           client_streaming=client, server_streaming=server)  # fmt: skip
    return [orders, goods]


def descriptor_set(*, whole: bool = True) -> bytes:
    """Return what protoc makes of it with ``--include_imports``, or without."""
    return descriptor_pb2.FileDescriptorSet(file=files() if whole else files()[:1]).SerializeToString()


def pool() -> descriptor_pool.DescriptorPool:
    """Return a pool with the descriptions."""
    made = descriptor_pool.DescriptorPool()
    for known in (any_pb2, timestamp_pb2):
        made.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for file in reversed(files()):
        made.AddSerializedFile(file.SerializeToString())
    return made


class Shop:
    """Answers of the service, for a ``GrpcApp``.

    ``New`` gives the order back; of id 0 it knows none, and says so with details. ``Watch`` gives it three times with
    other ids, ``Sum`` one with the sum of all ids, ``Talk`` each at once.
    """

    def __init__(self) -> None:
        self.pool = pool()
        self._order: Any = message_factory.GetMessageClass(self.pool.FindMessageTypeByName("shop.Order"))

    def parse(self, data: bytes) -> Any:
        """Return an order as a JSON value."""
        return json_format.MessageToDict(self._order.FromString(data), descriptor_pool=self.pool)

    def render(self, document: object) -> bytes:
        """Return an order that is given as a JSON value."""
        return bytes(json_format.Parse(json.dumps(document), self._order()).SerializeToString())

    async def new(self, exchange: Exchange) -> None:
        """See the class."""
        data = await exchange.read() or b""
        if self._order.FromString(data).order_id:
            await exchange.answer(Answer([data], headers=[("x-shop", "open")], trailers=[("x-till", "1")]))
            return
        info = error_details_pb2.ErrorInfo(reason="NO_SUCH_ORDER", domain="shop")
        await exchange.answer(Answer([], grpc.StatusCode.NOT_FOUND, "no such order", [info]))

    async def watch(self, exchange: Exchange) -> None:
        """See the class."""
        first = self._order.FromString(await exchange.read() or b"").order_id
        await exchange.answer(Answer([self.render({"orderId": first + n}) for n in range(3)]))

    async def sum(self, exchange: Exchange) -> None:
        """See the class."""
        total = sum(self._order.FromString(data).order_id for data in await exchange.read_all())
        await exchange.answer(Answer([self.render({"orderId": total})]))

    async def talk(self, exchange: Exchange) -> None:
        """See the class."""
        while (data := await exchange.read()) is not None:
            await exchange.write(data)

    def app(self) -> GrpcApp:
        """Return an app that serves it."""
        handlers = {"New": self.new, "Watch": self.watch, "Sum": self.sum, "Talk": self.talk}
        return GrpcApp({f"/{SERVICE}/{name}": handler for name, handler in handlers.items()})

    def reflect(self, server: grpc.aio.Server) -> None:
        """Add reflection, in the older version, as grpcio has it: for ``GrpcApp.start(prepare=)``."""
        reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server, self.pool)
