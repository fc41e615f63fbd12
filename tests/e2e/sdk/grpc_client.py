"""Calls an app by gRPC with Dapr's SDK for Python.

Run as ``python grpc_client.py``, with the sidecar's port in DAPR_GRPC_PORT and ``grpc`` in
DAPR_API_METHOD_INVOCATION_PROTOCOL; ``grpc_client.py stop`` stops the sidecar.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import grpc
from dapr.aio.clients import DaprClient as AsyncClient
from dapr.clients import DaprClient
from dapr.clients.health import DaprHealth
from dapr.conf import settings
from grpc_status import rpc_status

APP = "mathService"
JSON = "application/json"
NUMBERS = json.dumps({"arg1": 10, "arg2": 23})
AT_ONCE = 50


def fails(method: str, app: str = APP) -> Any:
    """Return the error that the SDK lets through, of a call that fails."""
    with DaprClient() as client:
        try:
            client.invoke_method(app, method, NUMBERS, content_type=JSON, http_verb="POST")
        except grpc.RpcError as error:
            return error
    raise AssertionError(f"{method} did not fail")


def waits() -> None:
    DaprHealth.wait_for_sidecar()


def adds() -> None:
    with DaprClient() as client:
        for method in ("add", "api/v1/add"):
            answer = client.invoke_method(APP, method, NUMBERS, content_type=JSON, http_verb="POST")
            assert (answer.json(), answer.content_type) == (33, JSON)


def carries() -> None:
    with DaprClient() as client:
        answer = client.invoke_method(
            APP, "told", b"abc", content_type="text/plain", http_verb="PUT",
            metadata=(("x-asked", "yes"), ("x-raw-bin", b"\0\1")), http_querystring=(("x", "1"),),
        )  # fmt: skip
    told = answer.json()
    assert (told["method"], told["query"], told["verb"], told["length"]) == ("told", "x=1", 4, 3), told
    assert told["contentType"] == "text/plain"
    metadata = told["metadata"]
    assert (metadata["x-asked"], metadata["x-raw-bin"]) == ("yes", "AAE="), metadata
    assert (metadata["dapr-caller-app-id"], metadata["dapr-callee-app-id"]) == ("caller", APP)
    assert answer.headers["x-answer"] == ["from the app"], answer.headers


def tells_the_apps_errors() -> None:
    broken = fails("broken")
    assert broken.code().name == "FAILED_PRECONDITION", broken
    assert broken.details() == "none left", broken.details()
    status = rpc_status.from_call(broken)
    assert b"OUT_OF_STOCK" in status.details[0].value, status


def explains() -> None:
    told = fails("add", "nobody")
    assert told.code().name == "INTERNAL"
    assert told.details().startswith("failed to invoke, id: nobody, err: "), told.details()


def carries_much() -> None:
    body = bytes(range(256)) * 8192
    with DaprClient() as client:
        answer = client.invoke_method(APP, "echo", body, content_type="application/octet-stream", http_verb="POST")
    assert answer.data == body


def calls_at_once() -> None:
    async def all_of_them() -> list[bytes]:
        async with AsyncClient() as client:
            calls = (client.invoke_method(APP, "echo", str(n), http_verb="POST") for n in range(AT_ONCE))
            return [answer.data for answer in await asyncio.gather(*calls)]

    assert asyncio.run(all_of_them()) == [b"%d" % n for n in range(AT_ONCE)]


def sets_metadata() -> None:
    with DaprClient() as client:
        assert client.get_metadata().application_id == "caller"
        client.set_metadata("colour", "grün")
        assert client.get_metadata().extended_metadata["colour"] == "grün"


def needs_its_token() -> None:
    settings.DAPR_API_TOKEN = "wrong"
    assert fails("add").code().name == "UNAUTHENTICATED"


def stops() -> None:
    with DaprClient() as client:
        client.shutdown()


CHECKS: dict[str, Callable[[], None]] = {
    "waits for the sidecar": waits,
    "adds two numbers": adds,
    "carries metadata and a query": carries,
    "tells the app's errors": tells_the_apps_errors,
    "explains an unknown app": explains,
    "echoes 2 MiB": carries_much,
    "makes many calls at once": calls_at_once,
    "reads and sets metadata": sets_metadata,
    "needs its token": needs_its_token,
}

if __name__ == "__main__":
    for name, check in ({"stops the sidecar": stops} if "stop" in sys.argv else CHECKS).items():
        try:
            check()
        except Exception:
            traceback.print_exc()
            sys.exit(f"failed: {name}")
        print(f"ok {name}")
