"""What the metadata of a sidecar shows, and what apps may write into it."""

from __future__ import annotations

import json

import pytest

from tieline.api.http.metadata import put_attribute, show_metadata
from tieline.api.metadata import MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, Metadata
from tieline.config.settings import HealthChecks
from tieline.model import Reply, Request


def metadata(protocol: str = "http", health_checks: HealthChecks | None = None) -> Metadata:
    return Metadata(
        app_id="cart",
        version="1",
        features=(),
        app_port=None,
        app_protocol=protocol,
        channel_address="127.0.0.1",
        max_concurrency=0,
        health_checks=health_checks,
    )


async def put(into: Metadata, key: bytes, value: bytes) -> Reply:
    return await put_attribute(into, Request(b"PUT", b"", None, [], value, len(value)), key)


def _answer(of: Metadata) -> bytes:
    body = show_metadata(of).body
    assert isinstance(body, bytes)
    return body


def extended(of: Metadata) -> dict[str, str]:
    found: dict[str, str] = json.loads(_answer(of))["extended"]
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


@pytest.mark.rule("H-136", "H-137")
async def test_the_document_has_the_members_of_daprd_in_their_order_on_one_line() -> None:
    of = metadata()
    for key, value in ((b"cliPID", b"123"), (b"a%2Fb+c", b"x"), (b"cliPID", b"456"), (b"uml", "über\n".encode())):
        await put(of, key, value)
    await put(of, b"daprRuntimeVersion", b"mine")
    of.http_endpoints = ("ext",)

    assert (
        show_metadata(of).body
        == (
            '{"id":"cart","runtimeVersion":"1",'
            '"extended":{"a/b c":"x","cliPID":"456","daprRuntimeVersion":"1","uml":"über\\n"},'
            '"httpEndpoints":[{"name":"ext"}],'
            '"appConnectionProperties":{"protocol":"http","channelAddress":"127.0.0.1"},'
            '"actorRuntime":{"runtimeStatus":"DISABLED","hostReady":false,"placement":"placement: disconnected"}}\n'
        ).encode()
    )


@pytest.mark.rule("H-136")
@pytest.mark.parametrize(("protocol", "path"), [("https", {"healthCheckPath": "/up"}), ("grpc", {})])
def test_how_the_app_is_probed_is_shown(protocol: str, path: dict[str, str]) -> None:
    checks = HealthChecks(enabled=True, path="/up", interval_s=90.0, timeout_s=0.5, threshold=3)

    shown = json.loads(_answer(metadata(protocol, checks)))["appConnectionProperties"]

    assert list(shown) == ["protocol", "channelAddress", "health"]
    assert list(shown["health"].items()) == [
        *path.items(),
        ("healthProbeInterval", "1m30s"),
        ("healthProbeTimeout", "500ms"),
        ("healthThreshold", 3),
    ]


def test_an_app_that_is_not_probed_has_no_health_to_show() -> None:
    assert "health" not in json.loads(_answer(metadata()))["appConnectionProperties"]
