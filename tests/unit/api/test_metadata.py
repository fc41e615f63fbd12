"""What apps may write into the metadata of their sidecar."""

from __future__ import annotations

import json

from tieline.api.http.metadata import MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, Metadata
from tieline.model import Reply, Request


def metadata() -> Metadata:
    return Metadata(
        app_id="cart",
        version="1",
        features=(),
        app_port=None,
        app_protocol="http",
        channel_address="127.0.0.1",
        max_concurrency=0,
    )


async def put(into: Metadata, key: bytes, value: bytes) -> Reply:
    return await into.set_attribute(Request(b"PUT", b"", None, [], value, len(value)), key)


def extended(of: Metadata) -> dict[str, str]:
    body = of.answer().body
    assert isinstance(body, bytes)
    found: dict[str, str] = json.loads(body)["extended"]
    return found


async def test_what_apps_write_is_bounded_in_number_and_size() -> None:
    of = metadata()

    longest = await put(of, b"longest", b"x" * (MAX_ATTRIBUTE_BYTES - len(b"longest")))
    too_long = await put(of, b"too-long", b"x" * MAX_ATTRIBUTE_BYTES)
    for number in range(MAX_ATTRIBUTES - 1):
        assert (await put(of, b"key-%d" % number, b"v")).status == 204
    one_more = await put(of, b"one-more", b"v")
    again = await put(of, b"key-0", b"new")

    assert (longest.status, too_long.status, one_more.status, again.status) == (204, 413, 400, 204)
    kept = extended(of)
    assert kept["key-0"] == "new"
    assert "too-long" not in kept
    assert "one-more" not in kept
