"""Calls an app with Dapr's SDK for Python.  Run as ``python client.py``, with the sidecar's port in DAPR_HTTP_PORT."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from dapr.aio.clients import DaprClient as AsyncClient
from dapr.clients import DaprClient
from dapr.clients.exceptions import DaprInternalError
from dapr.clients.health import DaprHealth

APP = "mathService"
JSON = "application/json"
NUMBERS = json.dumps({"arg1": 10, "arg2": 23})
AT_ONCE = 50


def fails(method: str, app: str = APP) -> dict[str, Any]:
    """Return what the SDK tells of a call that fails."""
    with DaprClient() as client:
        try:
            client.invoke_method(app, method, NUMBERS, content_type=JSON, http_verb="POST")
        except DaprInternalError as error:
            told: dict[str, Any] = error.as_dict()
            return told
    raise AssertionError(f"{method} did not fail")


def waits() -> None:
    DaprHealth.wait_for_sidecar()


def adds() -> None:
    with DaprClient(http_timeout_seconds=15) as client:
        for method in ("add", "api/v1/add"):
            answer = client.invoke_method(APP, method, NUMBERS, content_type=JSON, http_verb="POST")
            assert (answer.status_code, answer.json(), answer.content_type) == (200, 33, JSON)


def carries() -> None:
    with DaprClient(headers_callback=lambda: {"x-traced": "yes"}) as client:
        answer = client.invoke_method(
            APP, "told/it", b"abc", content_type="text/plain", http_verb="PUT",
            metadata=(("x-asked", "yes"),), http_querystring=(("x", "1"), ("x", "ä b")),
        )  # fmt: skip
    told = answer.json()
    assert (told["verb"], told["length"]) == ("PUT", 3)
    assert told["path"] in ("/told/it?x=1&x=%C3%A4+b", "/told/it?x=1&x=%C3%A4%20b"), told["path"]
    headers = told["headers"]
    assert (headers["x-asked"], headers["x-traced"], headers["content-type"]) == ("yes", "yes", "text/plain")
    assert (headers["dapr-caller-app-id"], headers["dapr-callee-app-id"]) == ("caller", APP)
    assert headers["user-agent"].startswith("dapr-sdk-python/")
    assert {name.lower(): value for name, value in answer.headers.items()}["x-answer"] == ["from the app"]


def tells_the_apps_errors() -> None:
    missing = fails("no/such/method")
    assert (missing["status_code"], missing["raw_response_bytes"]) == (404, b"no such method")
    broken = fails("broken")
    assert (broken["status_code"], broken["errorCode"], broken["message"]) == (500, "OUT_OF_STOCK", "none left")


def explains() -> None:
    told = fails("add", "nobody")
    assert (told["status_code"], told["errorCode"]) == (500, "ERR_DIRECT_INVOKE"), told
    assert told["message"].startswith("failed to invoke, id: nobody, err: "), told


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


def takes_an_endpoint() -> None:
    os.environ["DAPR_HTTP_ENDPOINT"] = f"http://localhost:{os.environ.pop('DAPR_HTTP_PORT')}"
    adds()


def needs_its_token() -> None:
    del os.environ["DAPR_API_TOKEN"]
    assert fails("add")["status_code"] == 401


CHECKS: dict[str, Callable[[], None]] = {
    "waits for the sidecar": waits,
    "adds two numbers": adds,
    "carries headers and a query": carries,
    "tells the app's errors": tells_the_apps_errors,
    "explains an unknown app": explains,
    "echoes 2 MiB": carries_much,
    "makes many calls at once": calls_at_once,
    "takes an endpoint": takes_an_endpoint,
    "needs its token": needs_its_token,
}

if __name__ == "__main__":
    for name, check in CHECKS.items():
        try:
            check()
        except Exception:
            traceback.print_exc()
            sys.exit(f"failed: {name}")
        print(f"ok {name}")
