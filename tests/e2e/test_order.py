"""In which order a call is looked at on its way, and what of it a sidecar leaves alone."""

from __future__ import annotations

import asyncio

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.app import Exchange, echo
from tests.support.h2peer import H2Client
from tests.support.http1 import Answer
from tests.support.mesh import Mesh, free_port, invoke_path, start_pair
from tieline.net.http2_client import Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.wire.http2.connection import request_fields

WAYS = pytest.mark.parametrize("way", ["self", "remote"])
BAD_BAGGAGE = [("baggage", "no equals sign")]
FROM_PEER = [
    (b"tieline-invoke", b"1"),
    (b"dapr-caller-app-id", b"someone"),
    (b"dapr-caller-namespace", b"default"),
]


def detail(answer: Answer) -> str:
    """Return what an error answer says."""
    return answer.body.decode()


# ── at the caller's sidecar ────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-40")
@WAYS
async def test_a_preflight_is_a_call_like_any_other(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.answer(200, b"", [("Access-Control-Allow-Origin", "the app's own")])

    pair = await start_pair(mesh, handler)

    headers = [("Origin", "http://elsewhere"), ("Access-Control-Request-Method", "PUT")]
    answer = await pair.entry(way).call("callee", "x", "OPTIONS", headers=headers)

    (seen,) = pair.app.seen
    assert seen.verb == "OPTIONS"
    assert (seen.header("origin"), seen.header("access-control-request-method")) == ("http://elsewhere", "PUT")
    assert [value for name, value in answer.headers if name == "access-control-allow-origin"] == ["the app's own"]


@pytest.mark.rule("H-41")
async def test_baggage_is_checked_before_anything_is_routed_and_no_body_is_waited_for(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo, caller_flags=["--max-body-size", "1000"])
    caller = pair.caller

    nowhere = await caller.ask("GET", "/nowhere", headers=BAD_BAGGAGE)
    own = await caller.ask("GET", "/v1.0/metadata", headers=BAD_BAGGAGE)
    bad_method = await caller.call("callee", "a%23b", headers=BAD_BAGGAGE)
    # The limit of bodies is outermost, but counts what is read: of a call that is refused, nothing is.
    too_large = await caller.call("callee", "x", "POST", headers=BAD_BAGGAGE, body=bytes(2000))
    traced = await caller.ask("GET", "/nowhere")
    cleaned = await caller.ask("GET", "//v1.0/./metadata/")

    for answer in (nowhere, own, bad_method, too_large):
        assert (answer.status, answer.body.startswith(b"invalid baggage header: ")) == (400, True)
    assert (traced.status, traced.header("traceparent") is not None) == (404, True)
    assert (cleaned.status, b'"id":"caller"' in cleaned.body) == (200, True)
    assert pair.app.seen == []


@pytest.mark.rule("H-42")
async def test_a_method_is_checked_before_its_target_is_looked_up(mesh: Mesh) -> None:
    caller = await mesh.sidecar("caller")

    nameless = await caller.ask("GET", "/v1.0/invoke/method/a%23b")
    forbidden = await caller.call("nobody", "a%23b")
    forbidden_and_two_dots = await caller.call("a.b.c", "a%23b")
    two_dots = await caller.call("a.b.c", "x")
    unknown = await caller.call("nobody", "x")

    assert nameless.status == 404
    for answer in (forbidden, forbidden_and_two_dots):
        assert "invalid method: method contains forbidden character" in detail(answer)
        assert answer.header("tieline-cause") == "bad-request"
    assert detail(two_dots).endswith('err: invalid app id a.b.c"}')
    assert detail(unknown).endswith("err: couldn't find service: nobody\"}")


@pytest.mark.rule("H-61")
async def test_without_a_limit_for_bodies_a_large_one_reaches_another_app(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo, caller_flags=["--max-body-size", "0"])
    body = bytes(5 << 20)

    answer = await pair.caller.call("callee", "x", "POST", body=body)

    assert (answer.status, answer.body == body) == (200, True)


@pytest.mark.rule("H-84")
async def test_errors_are_written_as_json_or_text_and_never_as_a_page(mesh: Mesh) -> None:
    caller = await mesh.sidecar("caller")

    answer = await caller.call("%3Cb%3E&", "x")
    text = await caller.call("x", "x", headers=BAD_BAGGAGE)

    assert answer.header("content-type") == "application/json"
    assert answer.body == (
        b'{"errorCode":"ERR_DIRECT_INVOKE","message":"failed to invoke, id: \\u003cb\\u003e\\u0026, '
        b"err: couldn't find service: \\u003cb\\u003e\\u0026\"}"
    )
    assert text.header("content-type") == "text/plain; charset=utf-8"
    assert text.header("x-content-type-options") == "nosniff"
    assert text.body == b'invalid baggage header: invalid baggage list-member: "no equals sign"\n'


async def test_a_url_that_stops_before_a_method_is_told_and_logged_like_any_failed_call(mesh: Mesh) -> None:
    caller = await mesh.sidecar("caller")

    answer = await caller.ask("GET", "/v1.0/invoke/callee/method")

    assert answer.status == 400
    assert (answer.header("tieline-cause"), answer.header("tieline-hop")) == ("bad-request", "caller")
    assert "name a method" in (answer.header("tieline-hint") or "")
    await caller.says("outbound call failed: the URL stops before a method")


async def test_an_id_that_is_no_utf_8_is_just_unknown(mesh: Mesh) -> None:
    caller = await mesh.sidecar("caller")

    answers = [await caller.call(app_id, "x") for app_id in ("%FF", "a.%FF", "%00", ".default")]

    for answer in answers:
        assert (answer.status, answer.header("tieline-cause")) == (500, "name-unknown")
        assert "couldn't find service: " in detail(answer)
    assert " level=error " not in caller.log()


async def test_a_bad_escape_in_the_key_of_an_attribute_is_answered(mesh: Mesh) -> None:
    """HTTP/1.1 refuses it earlier."""
    caller = await mesh.sidecar("caller")
    client = await H2Client.open(caller.port)

    stream = await (await client.request("PUT", "/v1.0/metadata/%zz", body=b"x")).whole()

    assert (stream.status, stream.ended) == (400, True)
    assert "a handler failed" not in caller.log()
    client.close()


# ── at the callee's sidecar ────────────────────────────────────────────────────────────────────────
async def ask_as_peer(connection: Http2Client, verb: bytes, path: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a call in the form that sidecars use among themselves, with a path that no sidecar would send."""
    reply = await connection.request(request_fields(verb, path, b"callee", FROM_PEER), b"")
    assert isinstance(reply.body, bytes)
    return reply.status, dict(reply.headers), reply.body


@pytest.mark.rule("H-43")
async def test_a_callee_cleans_and_checks_a_method_itself_before_its_app_is_asked(mesh: Mesh) -> None:
    app = await mesh.app(echo)
    callee = await mesh.sidecar("callee", app)
    pool = Http2Pool(native=True)
    connection = await pool.connection("127.0.0.1", callee.internal)

    cleaned = await ask_as_peer(connection, b"GET", b"/public/%2E%2E/admin")
    forbidden = await ask_as_peer(connection, b"GET", b"/a%23b")
    bad_escape = await ask_as_peer(connection, b"GET", b"/a%zz")
    bad_verb = await ask_as_peer(connection, b"BREW", b"/x")
    pool.close()

    (seen,) = app.seen
    assert (cleaned[0], seen.target) == (200, "/admin")
    for status, headers, text in (forbidden, bad_escape, bad_verb):
        assert (status, headers[b"tieline-error"], headers[b"tieline-cause"]) == (500, b"3", b"bad-request")
        assert text.startswith(b"invalid ")
    told = [seen.header(f"dapr-{name}") for name in ("caller-app-id", "caller-namespace", "callee-app-id")]
    assert told == ["someone", "default", "callee"]


@pytest.mark.rule("H-43", "H-85")
async def test_self_invocation_runs_the_app_s_part_only(mesh: Mesh) -> None:
    nowhere = free_port()
    callee = await mesh.sidecar("callee", nowhere, wait="/v1.0/healthz/outbound")
    caller = await mesh.sidecar("caller")
    refused = f'Get \\"http://127.0.0.1:{nowhere}/x\\": dial tcp 127.0.0.1:{nowhere}: connect: connection refused"}}'

    by_itself = await callee.call("callee", "x")
    unknown = await caller.call("callee", "x")

    assert detail(by_itself).endswith(f"failed to invoke, id: callee, err: {refused}")
    # An app that is not up yet is announced to nobody.
    assert unknown.header("tieline-cause") == "name-unknown"


@pytest.mark.rule("H-29")
async def test_self_invocation_needs_no_resolver(mesh: Mesh) -> None:
    """Its file cannot be made, since a file has the name of its folder."""
    (mesh.state / "tieline").write_text("in the way")
    app = await mesh.app(echo)
    callee = await mesh.sidecar("callee", app)

    by_itself = await callee.call("callee", "x", "POST", body=b"me")
    other = await callee.call("other", "x")

    assert (by_itself.status, by_itself.body) == (200, b"me")
    assert (other.status, other.header("tieline-cause")) == (500, "resolver-failed")


# ── the app's answer ───────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-66")
@WAYS
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_the_caller_s_to_follow(mesh: Mesh, way: str, status: int) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        exchange.answer(status, b"over there", [("Location", "/elsewhere")])

    pair = await start_pair(mesh, handler)

    answer = await pair.entry(way).call("callee", "x", "POST", body=b"x")

    assert (answer.status, answer.header("location"), answer.body) == (status, "/elsewhere", b"over there")
    assert [seen.target for seen in pair.app.seen] == ["/x"]


@pytest.mark.rule("H-87")
@WAYS
async def test_an_error_of_a_sidecar_has_none_of_the_app_s_fields(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(
            b"HTTP/1.1 200 OK\r\nX-From-App: yes\r\nSet-Cookie: a=b\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
        )
        exchange.close()

    pair = await start_pair(mesh, handler)

    answer = await pair.entry(way).call("callee", "x")

    assert (answer.status, answer.header("tieline-cause")) == (500, "app-broken")
    own = {"content-type", "content-length", "traceparent", "date", "tieline-cause", "tieline-hop", "tieline-hint"}
    assert {name for name, _ in answer.headers} <= own


async def test_an_h2c_app_that_refuses_a_call_for_certain_is_asked_once_more(mesh: Mesh) -> None:
    """Any verb: it was not processed."""
    seen: list[str] = []
    gone = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    seen.append(str(dict(event.headers)[":method"]))  # type: ignore[index]
                    if len(seen) == 1:
                        connection.reset_stream(event.stream_id, 7)  # REFUSED_STREAM
                    else:
                        connection.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
            writer.write(connection.data_to_send())
        writer.close()
        gone.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    callee = await mesh.sidecar("callee", port, "--app-protocol", "h2c")

    answer = await callee.ask("POST", invoke_path("callee", "x"), body=b"once")

    assert (answer.status, seen) == (204, ["POST", "POST"])
    callee.kill()
    await asyncio.wait_for(gone.wait(), 5)
    server.close()
