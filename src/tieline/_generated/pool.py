"""The descriptors of the generated modules, apart from those of other code in the process."""

from __future__ import annotations

from typing import Final

from google.protobuf import any_pb2, descriptor_pool, duration_pb2, empty_pb2, timestamp_pb2

POOL: Final = descriptor_pool.DescriptorPool()
for _known in (any_pb2, duration_pb2, empty_pb2, timestamp_pb2):
    POOL.AddSerializedFile(_known.DESCRIPTOR.serialized_pb)
