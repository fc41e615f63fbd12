"""``tieline invoke``: arguments, and calls to servers that behave as real ones do on bad days."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.command import Result, run, start
from tieline.cli.invoke import path_of
from tieline.cli.main import main

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAPR_")}
    return {**kept, "XDG_STATE_HOME": str(tmp_path)}


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[int]:
    """Serve each connection by ``talk``; yields the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            # As a sidecar does: before a call to an address, it is asked whether it is one.
            line = await reader.readline()
            if line.startswith(b"GET /v1.0/healthz/outbound"):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                return
            rest = asyncio.StreamReader()
            rest.feed_data(line)
            tasks.add(asyncio.create_task(_pass_on(reader, rest)))
            await talk(rest, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()


async def _pass_on(source: asyncio.StreamReader, to: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(65536):
            to.feed_data(piece)
    to.feed_eof()


async def head_of(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")


def answering(answer: bytes, seen: list[str] | None = None) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if seen is not None:
            seen.append(head)
        writer.write(answer)
        await writer.drain()

    return talk


async def invoke(environ: dict[str, str], port: int, *argv: str, stdin: bytes | None = None) -> Result:
    return await run(environ, "invoke", "orders", "m", "--port", str(port), *argv, stdin=stdin)


# --- arguments ---


@pytest.mark.rule("K-32")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("m", "m"),
        ("/m", "m"),
        ("//m", "/m"),
        ("a/b?x=1&y=%20z", "a/b?x=1&y=%20z"),
        ("a b", "a%20b"),
        ("a#b", "a%23b"),
        ("50%", "50%25"),
        ("%zz%2F", "%25zz%2F"),
        ("ü", "%C3%BC"),
        ("a\r\nb", "a%0D%0Ab"),
        ("", ""),
    ],
)
def test_what_may_stand_in_a_url_stays_and_the_rest_is_encoded(method: str, path: str) -> None:
    assert path_of("orders", method) == f"/v1.0/invoke/orders/method/{path}"


@pytest.mark.parametrize(
    ("app_id", "target"),
    [
        ("orders.staging", "orders.staging"),
        ("a/b", "a%2Fb"),
        ("a b?", "a%20b%3F"),
        ("http://math.example.com/", "http://math.example.com"),
        ("https://math.example.com:8443", "https://math.example.com:8443"),
    ],
)
def test_an_app_id_is_one_part_of_the_path_unless_it_is_a_url(app_id: str, target: str) -> None:
    assert path_of(app_id, "m") == f"/v1.0/invoke/{target}/method/m"


@pytest.mark.rule("K-1", "K-32")
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], 'required flag(s) "app-id", "method" not set'),
        (["orders"], 'required flag(s) "method" not set'),
        (["-m", "x"], 'required flag(s) "app-id" not set'),
        (["orders", "m", "more"], "'more' is one argument too many"),
        (
            ["orders", "m", "-d", "1", "-f", "x"],
            "Only one of --data and --data-file allowed in the same invoke command.",
        ),
        (
            ["orders", "m", "-f", "/no/such"],
            "Error reading payload from '/no/such'. Error: open /no/such: no such file",
        ),
        (["orders", "m", "-H", "no colon"], "is no header: write it like 'Name: value'"),
        (["orders", "m", "-H", "a b: c"], "is no header"),
        (["orders", "m", "-H", "a: b\r\nc: d"], "the value of a holds a control character"),
        (["orders", "m", "-H", "Content-Length: 3"], "Content-Length is set by the command itself"),
        (["orders", "m", "-v", "GTE"], "'GTE' is no verb of HTTP"),
        (["orders", "m", "--timeout", "0"], "is not in the range"),
        (["orders", "m", "--port", "70000"], "is not in the range"),
        (["orders", "m", "--timeout", "nan"], "nan is no number of seconds"),
        (["orders", "m", "--timeout", "inf"], "is not in the range"),
        (["orders", "m", "--timeout", "1e400"], "is not in the range"),
        (["orders", "m", "--timeout", "1e300"], "is not in the range"),
        (["orders", "m", "--port", "1", "--api-token", "a\nb"], "--api-token has a control character"),
        (["orders", "m", "--address", "nowhere"], "'nowhere' is no address"),
        (["orders", "m", "--address", "[::1"], "'[::1' is no address"),
        (["orders", "m", "--port", "1", "--from", "x"], "--from and --port: give one way to a sidecar"),
        (["orders", "m", "-o", "xml"], "'xml' is not one of"),
    ],
)
def test_a_mistake_is_one_line_and_2(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["invoke", *argv])

    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


# --- what is sent ---


@pytest.mark.rule("K-32")
async def test_the_request_is_as_dapr_makes_it(environ: dict[str, str]) -> None:
    seen: list[str] = []
    async with serving(answering(OK + b"Content-Length: 0\r\n\r\n", seen)) as port:
        await invoke(environ, port)
        await invoke(environ, port, "-v", "get", "-H", "content-type: text/plain", "-H", "X-A: 1", "-H", "x-a: é")
        await invoke(environ, port, "-H", "Content-Type:", "-H", "Host: elsewhere")
        await invoke({**environ, "DAPR_API_TOKEN": "secret"}, port)
        await invoke({**environ, "DAPR_API_TOKEN": "secret"}, port, "--api-token", "other")

    lines = [head.split("\r\n") for head in seen]
    assert lines[0][0] == "POST /v1.0/invoke/orders/method/m HTTP/1.1"
    assert {"Content-Type: application/json", "Content-Length: 0", f"Host: 127.0.0.1:{port}"} <= set(lines[0])
    assert lines[1][0].startswith("GET ")
    assert [line for line in lines[1] if line.lower().startswith(("content", "x-a"))] == [
        "content-type: text/plain",
        "X-A: 1",
        "x-a: é".encode().decode("latin-1"),
    ]
    assert "Host: elsewhere" in lines[2]
    assert not any(line.startswith(("Content-Type", "Host: 127")) for line in lines[2])
    assert "dapr-api-token: secret" in lines[3]
    assert "dapr-api-token: other" in lines[4]


async def test_a_body_goes_out_with_its_length_or_in_chunks_as_it_comes(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(bytes(range(256)) * 2000)
    got: list[tuple[str, bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if "Transfer-Encoding: chunked" in head:
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            got.append(("chunked", body))
        else:
            length = head.partition("Content-Length: ")[2].partition("\r\n")[0]
            got.append((length, await reader.readexactly(int(length))))
        writer.write(OK + b"Content-Length: 0\r\n\r\n")

    async with serving(talk) as port:
        await invoke(environ, port, "-d", "ü")
        await invoke(environ, port, "-f", str(tmp_path / "body"))
        await invoke(environ, port, "-f", "-", stdin=b"x" * 100_000)

    assert got == [("2", "ü".encode()), ("512000", bytes(range(256)) * 2000), ("chunked", b"x" * 100_000)]


async def test_an_answer_that_comes_before_the_body_has_ended_is_shown(environ: dict[str, str]) -> None:
    """Standard input is still open; who waits for its end would wait for ever."""
    async with serving(answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nmuch")) as port:
        process = await start(
            environ, "invoke", "orders", "m", "--port", str(port), "-f", "-", stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(b"begin")
        async with asyncio.timeout(20):
            code = await process.wait()
        assert process.stdout is not None
        out = await process.stdout.read()

    assert (code, out) == (1, b"much")


# --- what is shown ---


@pytest.mark.rule("K-32")
async def test_a_body_is_passed_on_byte_for_byte_whatever_it_is(environ: dict[str, str]) -> None:
    body = bytes(range(256)) * 500
    async with serving(answering(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as port:
        result = await invoke(environ, port)

    assert result.raw == body
    assert result.code == 0
    assert "App invoked successfully: 200 OK" in result.err


async def test_a_stream_is_shown_as_it_comes(environ: dict[str, str]) -> None:
    more = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await more.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async with serving(talk) as port:
        process = await start(environ, "invoke", "orders", "m", "--port", str(port), "-i", "-q")
        assert process.stdout is not None
        async with asyncio.timeout(20):
            head = await process.stdout.readuntil(b"data: 1\n\n")
            more.set()
            rest, err = await process.communicate()

    assert head.startswith(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (rest, err, process.returncode) == (b"data: 2\n\n", b"", 0)


@pytest.mark.rule("K-32")
@pytest.mark.parametrize(
    ("status", "code"), [("200 OK", 0), ("204 No Content", 0), ("301 Moved", 0), ("404 Not Found", 1), ("503", 1)]
)
async def test_the_exit_code_tells_the_status(status: str, code: int, environ: dict[str, str]) -> None:
    async with serving(answering(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())) as port:
        result = await invoke(environ, port)

    assert result.code == code
    if code:
        assert f"❌  error invoking app orders: {status}\n" in result.err


async def test_a_sidecars_failure_is_explained_and_an_apps_is_not(environ: dict[str, str]) -> None:
    failure = b'{"errorCode":"ERR_DIRECT_INVOKE","message":"failed to invoke, id: orders, err: \\u001b[2J"}'
    by_sidecar = (
        b"HTTP/1.1 500 Internal Server Error\r\ntieline-cause: app-unreachable\r\ntieline-hop: app\r\n"
        b"tieline-hint: start it now %E2%80%A6\r\nContent-Length: "
    )
    by_sidecar += str(len(failure)).encode() + b"\r\n\r\n" + failure
    by_app = b'HTTP/1.1 500 X\r\nContent-Length: 18\r\n\r\n{"message": "mine"}'[:-1]
    async with serving(answering(by_sidecar)) as port:
        told = await invoke(environ, port, "-q")
        as_json = await invoke(environ, port, "-o", "json")
    async with serving(answering(by_app)) as port:
        plain = await invoke(environ, port, "-q")

    assert told.out == failure.decode()
    assert told.err.splitlines() == [
        "❌  error invoking app orders: 500 Internal Server Error",
        "    message:     failed to invoke, id: orders, err: �[2J",
        "    why:         app-unreachable",
        "    where:       app",
        "    what to do:  start it now …",
    ]
    assert as_json.json()["error"] == {
        "kind": "status",
        "message": "failed to invoke, id: orders, err: �[2J",
        "cause": "app-unreachable",
        "hop": "app",
        "hint": "start it now …",
    }
    assert plain.err == "❌  error invoking app orders: 500 X\n"


async def test_json_holds_all_of_an_answer(environ: dict[str, str]) -> None:
    async with serving(answering(OK + b"X-A: 1\r\nx-a: 2\r\nContent-Length: 2\r\n\r\n\xff\xfe")) as port:
        binary = await invoke(environ, port, "-o", "json")
    async with serving(answering(OK + b"Content-Length: 2\r\n\r\nok")) as port:
        text = await invoke(environ, port, "-o", "json")

    document = binary.json()
    assert (document["status"], document["reason"], document["exitCode"], document["error"]) == (200, "OK", 0, None)
    assert document["headers"][:2] == [["X-A", "1"], ["x-a", "2"]]
    assert (document["bodyBase64"], document["bodyBytes"]) == ("//4=", 2)
    assert document["through"] == {"appId": None, "address": f"127.0.0.1:{binary.json()['through']['address'][10:]}"}
    assert text.json()["body"] == "ok"
    assert text.err == ""


# --- bad days ---


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9\r\n", "is no HTTP: is it the API port of a sidecar?"),
        (OK + b"Content-Length: 10\r\n\r\nhalf", "the answer broke off before its end"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhalf", "the answer broke off before its end"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "the answer broke off before its end"),
    ],
)
async def test_an_answer_that_is_none_is_a_failure(answer: bytes, told: str, environ: dict[str, str]) -> None:
    """Half an answer must not pass for a whole one."""
    async with serving(answering(answer)) as port:
        result = await invoke(environ, port, "-q")

    assert result.code == 1
    assert told in result.err


async def test_the_timeout_holds_for_all_of_a_call_that_drips(environ: dict[str, str]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK + b"Content-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await reader.read()

    began = time.monotonic()
    async with serving(talk) as port:
        dripping = await invoke(environ, port, "--timeout", "0.7")
    async with serving(silent) as port:
        waiting = await invoke(environ, port, "--timeout", "0.3", "-o", "json")

    assert time.monotonic() - began < 15
    assert (dripping.code, waiting.code) == (4, 4)
    assert "the answer was not over within 0.7 s" in dripping.err
    assert waiting.json()["error"]["kind"] == "timeout"


async def test_where_nobody_listens_it_is_3(environ: dict[str, str], tmp_path: Path) -> None:
    refused = await invoke(environ, 1)
    socket = await run(environ, "invoke", "orders", "m", "-u", str(tmp_path / "none"))
    folder = await run(environ, "invoke", "orders", "m", "-u", str(tmp_path))
    nobody = await run(environ, "invoke", "orders", "m", "-o", "json")

    assert [result.code for result in (refused, socket, folder, nobody)] == [3, 3, 3, 3]
    assert "no sidecar answers: 127.0.0.1:1: connection refused" in refused.err
    assert "no such file or directory" in socket.err
    assert "dapr-orders-http.socket" in folder.err
    assert nobody.json()["error"]["kind"] == "no-sidecar"
    assert "tieline run --app-id caller" in nobody.json()["error"]["message"]


async def test_a_reader_that_has_enough_ends_it_in_silence(environ: dict[str, str]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK + b"Connection: close\r\n\r\n")
        while True:
            writer.write(b"line\n" * 1000)
            await writer.drain()

    async with serving(talk) as port:
        process = await start(environ, "invoke", "orders", "m", "--port", str(port), "-q")
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.readline() == b"line\n"
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            err = await process.stderr.read()
            code = await process.wait()

    assert (err, code) == (b"", 141)


async def test_ctrl_c_is_130_and_says_nothing(environ: dict[str, str]) -> None:
    came = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        came.set()
        await reader.read()

    async with serving(talk) as port:
        process = await start(environ, "invoke", "orders", "m", "--port", str(port), "-q")
        async with asyncio.timeout(20):
            await came.wait()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()

    assert (out, err.strip(), process.returncode) == (b"", b"", 130)


async def test_status_lines_can_be_json(environ: dict[str, str]) -> None:
    async with serving(answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")) as port:
        result = await invoke(environ, port, "--log-as-json")

    lines = [json.loads(line) for line in result.err.splitlines()]
    assert [line["status"] for line in lines] == ["info", "failure"]
    assert lines[1]["msg"] == "error invoking app orders: 404 Not Found"


async def test_the_port_of_an_app_is_told_from_that_of_a_sidecar(environ: dict[str, str]) -> None:
    """An app that answers everything with 200 would make the call look well."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK + b"Content-Length: 2\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(app, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    result = await invoke(environ, port)
    server.close()

    assert (result.code, result.out) == (3, "")
    assert "is no HTTP API of a sidecar: /v1.0/healthz/outbound gives 200 there" in result.err


@pytest.mark.parametrize("argv", [["list"], ["stop", "a"], ["invoke", "a", "m"], ["run", "--", "true"]])
async def test_a_token_that_cannot_be_sent_is_told_and_not_shown(argv: list[str], environ: dict[str, str]) -> None:
    result = await run({**environ, "DAPR_API_TOKEN": "geheim\nx"}, *argv)

    assert result.code in (1, 2)
    assert "DAPR_API_TOKEN has a control character" in result.err
    assert "geheim" not in result.out + result.err


async def test_doctor_tells_of_a_token_that_cannot_be_sent(environ: dict[str, str]) -> None:
    result = await run({**environ, "DAPR_API_TOKEN": "geheim\nx"}, "doctor")

    assert result.code == 1
    assert "DAPR_API_TOKEN has a control character" in result.out
    assert "geheim" not in result.out + result.err


async def test_doctor_sees_that_no_registry_can_be_made(environ: dict[str, str]) -> None:
    result = await run({**environ, "XDG_STATE_HOME": "/proc/nope"}, "doctor")

    assert result.code == 1
    assert "/proc cannot be written" in result.out


async def test_stop_refuses_a_time_that_is_no_number(environ: dict[str, str]) -> None:
    result = await run(environ, "stop", "a", "--timeout", "nan")

    assert result.code == 2
    assert "nan is no number of seconds" in result.err
