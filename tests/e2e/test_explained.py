"""Every error of a sidecar's own says that it is one, why it came, and what to do; also those of no call."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.app import echo
from tests.support.http1 import Answer, Client
from tests.support.mesh import Mesh, free_port, invoke_path


def said(answer: Answer) -> tuple[int, str | None, str | None, str]:
    """Return status, cause, hop and hint of an answer."""
    fields = {name.lower(): value for name, value in answer.headers}
    return (answer.status, fields.get("tieline-cause"), fields.get("tieline-hop"), fields.get("tieline-hint", ""))


@pytest.mark.parametrize(
    ("verb", "path", "headers", "status", "cause", "hint"),
    [
        ("GET", "/v1.0/invoke/orders/new", {}, 404, "bad-request", "/v1.0/invoke/<app-id>/method/<method>"),
        ("GET", "/nosuch", {}, 404, "bad-request", "dapr-app-id"),
        ("GET", "/v1.0/invoke/a/method/%zz", {}, 400, "bad-request", ""),
        ("POST", "/v1.0/state/store", {}, 404, "bad-request", "Dapr's API state is not part of Tieline"),
        ("POST", "/v1.0/metadata", {}, 404, "bad-request", "takes GET"),
        ("GET", "/v1.0/shutdown", {}, 404, "denied", "shutdown, is closed by spec.api"),
        ("PUT", "/v1.0/metadata/k", {"Origin": "http://evil"}, 403, "denied", "--allowed-origins"),
        ("GET", invoke_path("a", "x"), {"Baggage": "="}, 400, "bad-request", "baggage"),
        ("GET", invoke_path("a", "x"), {"X-Long": "x" * 9000}, 431, "too-large", "--read-buffer-size"),
        ("GET", invoke_path("a", "x"), {"Transfer-Encoding": "what"}, 501, "bad-request", ""),
    ],
)
async def test_an_error_of_the_api_is_explained(
    verb: str, path: str, headers: dict[str, str], status: int, cause: str, hint: str, mesh: Mesh, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("spec: {api: {denied: [{name: shutdown, version: v1, protocol: http}]}}")
    sidecar = await mesh.sidecar("a", await mesh.app(echo), "--config", str(config))

    answer = said(await sidecar.ask(verb, path, headers=list(headers.items())))

    assert answer[:3] == (status, cause, "caller")
    assert hint in answer[3]


async def test_errors_are_explained_where_invocation_is_closed_and_on_the_public_port(
    mesh: Mesh, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("spec: {api: {denied: [{name: invoke, version: v1, protocol: http}]}}")
    public = free_port()
    sidecar = await mesh.sidecar("a", None, "--config", str(config), "--dapr-public-port", str(public))

    closed = said(await sidecar.call("a", "x"))
    wrong = said(await sidecar.ask("POST", "/v1.0/healthz"))
    client = await Client.open(public)
    client.send("GET", "/elsewhere")
    outside = said(await client.answer())
    client.close()

    assert closed == (404, "denied", "caller", "this API, invoke, is closed by spec.api of the Configuration")
    assert wrong == (405, "bad-request", "caller", "this path takes GET")
    assert outside[:3] == (404, "bad-request", "caller")
    assert "public port" in outside[3]


async def test_a_missing_token_is_explained(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a", environ={"DAPR_API_TOKEN": "secret"})

    answer = said(await sidecar.call("a", "x"))

    assert answer[:3] == (401, "denied", "caller")
    assert "dapr-api-token" in answer[3]
    assert "secret" not in answer[3]
