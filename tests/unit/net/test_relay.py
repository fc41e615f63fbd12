"""What a relayed RPC becomes when its server or its client misbehaves, frame by frame."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.h2peer import H2Client, H2Stream
from tests.support.mesh import until
from tests.support.proxied import Ends
from tieline.model import Cause, Endpoint
from tieline.net import relay
from tieline.wire.grpc.messages import frame as message
from tieline.wire.http2.frames import frame

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4
HEAD = b"\x88\x0f\x10\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"
RPC = [("content-type", "application/grpc"), ("te", "trailers"), ("dapr-app-id", "gamma")]


def literal(*fields: tuple[bytes, bytes]) -> bytes:
    """Return a header block that needs no table."""
    return b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in fields)


def ok(stream: int, *messages: bytes) -> bytes:
    """Return an answer that ends well."""
    data = b"".join(frame(DATA, 0, stream, message(one)) for one in messages)
    return frame(HEADERS, END_HEADERS, stream, HEAD) + data + frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)


Script = Callable[[int, int], bytes | None]
"""Returns what is written for the nth request, which came on a stream; ``None`` hangs up without a word."""


class RawApp:
    """A server that answers each request, once it has ended, with whatever bytes the test says.

    Attributes:
        bodies: What came of each request.
        resets: Codes of RST_STREAM frames that came.
        connections: How many were opened.
    """

    def __init__(self, script: Script, *, early: bool = False) -> None:
        self._script = script
        self._early = early
        self.bodies: list[bytes] = []
        self.resets: list[int] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(frame(SETTINGS, 0, 0, b""))
        open_bodies: dict[int, bytes] = {}
        try:
            await reader.readexactly(24)
            while True:
                head = await reader.readexactly(9)
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                if kind == SETTINGS and not flags & 1:
                    writer.write(frame(SETTINGS, 1, 0, b""))
                elif kind == PING and not flags & 1:
                    writer.write(frame(PING, 1, 0, payload))
                elif kind == RST_STREAM:
                    self.resets.append(int.from_bytes(payload, "big"))
                elif kind in (DATA, HEADERS):
                    if kind == DATA and payload:
                        credit = struct.pack(">L", len(payload))
                        writer.write(frame(WINDOW_UPDATE, 0, 0, credit) + frame(WINDOW_UPDATE, 0, stream, credit))
                    open_bodies[stream] = open_bodies.get(stream, b"") + (payload if kind == DATA else b"")
                    if flags & END_STREAM or (self._early and kind == HEADERS):
                        self.bodies.append(open_bodies[stream])
                        said = self._script(len(self.bodies), stream)
                        if said is None:
                            break
                        writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()


class House:
    """A raw app behind the ends of two sidecars, and a client that sees frames."""

    def __init__(self) -> None:
        self.app: RawApp
        self.ends: Ends
        self.client: H2Client

    async def open(self, script: Script, *, early: bool = False) -> House:
        self.app = RawApp(script, early=early)
        await self.app.start()
        self.ends = Ends(self.app.port)
        await self.ends.start()
        self.client = await H2Client.open(self.ends.api)
        return self

    async def call(self, body: bytes = b"\0\0\0\0\1x", *more: tuple[str, str]) -> H2Stream:
        call = await self.client.request("POST", "/test.Echo/Unary", [*RPC, *more], body)
        return await call.whole()

    async def aclose(self) -> None:
        self.client.close()
        await self.ends.aclose()
        await self.app.aclose()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.aclose()


def status(call: H2Stream) -> tuple[str | None, str | None]:
    """Return code and message of a call, in trailers or in a head that is all there is."""
    found = dict(call.trailers) if call.trailers else dict(call.headers)
    return found.get("grpc-status"), found.get("grpc-message")


# ── the server breaks off ──────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-78")
@pytest.mark.parametrize(
    ("code", "expected"), [(0x2, "13"), (0x8, "1"), (0xB, "8"), (0xC, "7"), (0x0, "13"), (0x1, "13"), (0x63, "13")]
)
async def test_a_reset_before_the_answer_becomes_a_status(house: House, code: int, expected: str) -> None:
    await house.open(lambda _, stream: frame(RST_STREAM, 0, stream, struct.pack(">L", code)))

    call = await house.call()

    assert status(call)[0] == expected
    assert "stream terminated by RST_STREAM with error code: " in str(status(call)[1])
    assert call.reset_code is None
    assert call.header("tieline-cause") == "app-broken"
    assert call.header("tieline-hop") == "app"


@pytest.mark.rule("G-78")
async def test_what_came_before_a_reset_is_delivered_and_then_a_status(house: House) -> None:
    def script(_: int, stream: int) -> bytes:
        head = frame(HEADERS, END_HEADERS, stream, HEAD) + frame(DATA, 0, stream, message(b"first"))
        return head + frame(RST_STREAM, 0, stream, struct.pack(">L", 2))

    await house.open(script)

    call = await house.call()

    assert bytes(call.data) == message(b"first")
    assert status(call)[0] == "13"
    assert dict(call.trailers)["tieline-cause"] == "app-broken"


@pytest.mark.rule("G-78")
@pytest.mark.parametrize("begun", [False, True])
async def test_a_connection_that_is_lost_is_unavailable_and_nothing_is_sent_twice(house: House, begun: bool) -> None:
    def script(number: int, stream: int) -> bytes | None:
        return frame(HEADERS, END_HEADERS, stream, HEAD) if begun and number == 1 else None

    await house.open(script)
    call = await house.client.request("POST", "/test.Echo/Unary", RPC, b"\0\0\0\0\1x")
    if begun:
        await call.until(lambda: call.status == 200)
        await house.call()  # the next one makes the app hang up
    await call.whole()

    assert status(call)[0] == "14"
    assert len(house.app.bodies) == 1 + begun


async def test_an_answer_without_trailers_is_an_error(house: House) -> None:
    await house.open(
        lambda _, stream: frame(HEADERS, END_HEADERS, stream, HEAD) + frame(DATA, END_STREAM, stream, message(b"x"))
    )

    call = await house.call()

    assert bytes(call.data) == message(b"x")
    assert status(call) == ("13", "server closed the stream without sending trailers")


@pytest.mark.parametrize(("http", "code"), [(b"404", "12"), (b"503", "14"), (b"200", "2")])
async def test_an_answer_that_is_no_rpc_becomes_a_status(house: House, http: bytes, code: str) -> None:
    head = b"\x08\x03" + http + literal((b"content-type", b"text/html"))
    await house.open(
        lambda _, stream: frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, b"<html>")
    )

    call = await house.call()

    assert call.status == 200
    assert status(call)[0] == code
    assert bytes(call.data) == b""


@pytest.mark.parametrize(
    "answer",
    [
        lambda stream: frame(DATA, 0, stream, b"x"),
        lambda stream: frame(HEADERS, END_HEADERS, stream, literal((b"x", b"y"))),
        lambda stream: frame(HEADERS, END_HEADERS, stream, HEAD + literal((b"Upper", b"y"))),
        lambda stream: frame(HEADERS, END_HEADERS, stream, HEAD + literal((b"connection", b"close"))),
        lambda stream: frame(HEADERS, END_HEADERS, stream, HEAD + literal((b"x", b"a\r\nb: c"))),
        lambda stream: frame(HEADERS, END_HEADERS, stream, HEAD + b"\x0f\x0d\x015") + frame(DATA, 1, stream, b"1234"),
        lambda stream: (
            ok(stream)[: -len(TRAILERS) - 9]
            + frame(HEADERS, END_HEADERS | END_STREAM, stream, literal((b":status", b"200")))
        ),
        lambda stream: frame(HEADERS, END_HEADERS, stream, HEAD) + frame(HEADERS, END_HEADERS, stream, TRAILERS),
    ],
)
async def test_a_malformed_answer_ends_its_call_and_no_other(house: House, answer: Callable[[int], bytes]) -> None:
    await house.open(lambda number, stream: answer(stream) if number == 1 else ok(stream, b"fine"))

    bad = await house.call()
    good = await house.call()

    assert status(bad)[0] == "13"
    assert status(good)[0] == "0"
    assert bytes(good.data) == message(b"fine")


MALFORMED = {
    "grpc-status": (b"one", 'malformed grpc-status: parsing "one": invalid syntax'),
    "thing-bin": (b"QQ,Qg", "malformed thing-bin: illegal base64 data"),
    "grpc-status-details-bin": (b"!", "malformed grpc-status-details-bin: illegal base64 data"),
}


@pytest.mark.rule("G-78")
@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("where", ["head", "trailers", "all there is"])
async def test_metadata_that_no_client_can_read_make_a_status(house: House, where: str, name: str) -> None:
    value, text = MALFORMED[name]
    broken = literal((name.encode(), value))
    answers = {
        "head": (HEAD + broken, TRAILERS),
        "trailers": (HEAD, broken if name == "grpc-status" else TRAILERS + broken),
        "all there is": (HEAD + (broken if name == "grpc-status" else TRAILERS + broken), b""),
    }

    def script(number: int, stream: int) -> bytes:
        if number == 4:
            return ok(stream, b"fine")
        head, trailers = answers[where]
        if not trailers:
            return frame(HEADERS, END_HEADERS | END_STREAM, stream, head)
        return frame(HEADERS, END_HEADERS, stream, head) + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)

    await house.open(script)

    calls = [await house.call() for _ in range(4)]  # what comes again is known again

    for call in calls[:3]:
        said = dict(call.trailers or call.headers)
        assert status(call) == ("13", text)
        assert (said["tieline-cause"], said["tieline-hop"]) == ("app-broken", "app")
        assert said.get(name) != value.decode()
    assert status(calls[3])[0] == "0"


@pytest.mark.rule("G-78")
@pytest.mark.parametrize("half", [b"\0\0", message(b"message")[:-1], message(b"whole") + b"\0"])
async def test_half_a_message_is_never_the_end_of_an_answer_that_is_well(house: House, half: bytes) -> None:
    def script(number: int, stream: int) -> bytes:
        data = frame(DATA, 0, stream, half if number == 4 else message(b"fine"))
        whole = ok(stream)
        at = len(whole) - len(TRAILERS) - 9
        return whole[:at] + data + whole[at:]

    await house.open(script)

    calls = [await house.call() for _ in range(4)]  # trailers that come again are known again

    assert [status(call)[0] for call in calls[:3]] == ["0"] * 3
    assert status(calls[3]) == ("13", "unexpected EOF")
    assert dict(calls[3].trailers)["tieline-cause"] == "app-broken"


@pytest.mark.parametrize(
    "garbage", [b"\0\0\4\x07\0\0\0\0\0\0\0\0\0", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 64]
)
async def test_a_server_that_breaks_the_protocol_costs_the_calls_on_its_connection(
    house: House, garbage: bytes
) -> None:
    await house.open(lambda number, stream: garbage if number == 1 else ok(stream, b"fine"))

    bad = await house.call()
    good = await house.call()

    assert status(bad)[0] in ("13", "14")
    assert status(good)[0] == "0"


@pytest.mark.rule("G-130")
async def test_baggage_that_the_answer_brings_itself_is_told_once(house: House) -> None:
    head = HEAD + literal((b"baggage", b"a=1"))
    await house.open(
        lambda _, stream: (
            frame(HEADERS, END_HEADERS, stream, head) + frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
        )
    )

    calls = [await house.call(b"", ("baggage", "a=1")) for _ in range(3)]  # what comes again is known again

    for call in calls:
        assert [value for name, value in call.headers if name == "baggage"] == ["a=1"]


# ── sent again ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-40")
@pytest.mark.parametrize("size", [1, 3000, 50_000])
async def test_a_call_that_was_refused_is_sent_again_whole(house: House, size: int) -> None:
    await house.open(
        lambda number, stream: (
            frame(RST_STREAM, 0, stream, struct.pack(">L", 7)) if number == 1 else ok(stream, b"fine")
        )
    )
    body = message(bytes(range(256)) * (size // 256) + b"x" * (size % 256))

    call = await house.call(body)

    assert status(call)[0] == "0"
    assert house.app.bodies == [body, body]


async def test_a_call_that_a_sidecar_refused_is_sent_again_at_once(house: House) -> None:
    """As one that drains does; here the app stands for it."""
    await house.open(
        lambda number, stream: frame(RST_STREAM, 0, stream, struct.pack(">L", 7)) if number == 1 else ok(stream, b"x")
    )
    house.ends.names.known_names["gamma"] = [Endpoint("127.0.0.1", house.app.port)]
    began = asyncio.get_running_loop().time()

    call = await house.call()

    assert status(call)[0] == "0"
    assert asyncio.get_running_loop().time() - began < 0.9
    assert len(house.app.bodies) == 2


async def test_a_call_that_is_always_refused_is_given_up(house: House) -> None:
    await house.open(lambda _, stream: frame(RST_STREAM, 0, stream, struct.pack(">L", 7)))

    call = await house.call()

    assert status(call)[0] == "14"
    assert len(house.app.bodies) == 4


async def test_a_call_beyond_the_last_that_a_leaving_server_takes_goes_elsewhere(house: House) -> None:
    def script(number: int, stream: int) -> bytes:
        if number == 1:
            return frame(GOAWAY, 0, 0, struct.pack(">LL", 0, 0))
        return ok(stream, b"fine")

    await house.open(script)

    call = await house.call()

    assert status(call)[0] == "0"
    assert house.app.connections == 2


# ── the client breaks off ──────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-77")
@pytest.mark.parametrize("how", ["reset", "gone"])
async def test_a_client_that_goes_away_cancels_the_call(house: House, how: str) -> None:
    await house.open(lambda _, stream: frame(HEADERS, END_HEADERS, stream, HEAD))
    call = await house.client.request("POST", "/test.Echo/Unary", RPC, b"\0\0\0\0\1x")
    await call.until(lambda: call.status == 200)

    if how == "reset":
        await call.cancel()
    else:
        house.client.close()

    await until(lambda: house.app.resets == [8])
    await until(lambda: len(house.ends.records) == 2)
    assert [record.cause for record in house.ends.records] == [Cause.CANCELLED] * 2
    assert [record.rpc_code for record in house.ends.records] == [1, 1]


async def test_a_client_that_goes_because_its_time_is_over_did_not_cancel(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CLIENT_AHEAD_S", 10.0)
    await house.open(lambda _, stream: frame(HEADERS, END_HEADERS, stream, HEAD))
    call = await house.client.request("POST", "/test.Echo/Unary", [*RPC, ("grpc-timeout", "5S")], b"\0\0\0\0\1x")
    await call.until(lambda: call.status == 200)

    await call.cancel()

    await until(lambda: len(house.ends.records) == 2)
    assert [record.cause for record in house.ends.records] == [Cause.TIMEOUT] * 2
    assert [record.rpc_code for record in house.ends.records] == [4, 4]


@pytest.mark.rule("G-77")
async def test_a_deadline_that_nobody_else_watches_is_kept(house: House) -> None:
    await house.open(lambda _, stream: frame(HEADERS, END_HEADERS, stream, HEAD))

    call = await house.call(b"\0\0\0\0\1x", ("grpc-timeout", "150m"))

    assert status(call) == ("4", "context deadline exceeded")
    assert dict(call.trailers)["tieline-cause"] == "timeout"
    await until(lambda: house.app.resets == [8])


async def test_an_early_answer_frees_both_sides(house: House) -> None:
    """The server has answered before the request ended: the client is told to send no more, and so is nobody kept."""
    await house.open(lambda _, stream: ok(stream, b"early"), early=True)

    call = await house.client.request("POST", "/test.Echo/Unary", RPC, b"\0\0\0\0\1x", end=False)
    await call.until(lambda: bool(call.trailers))

    assert status(call)[0] == "0"
    await until(lambda: call.reset_code == 0)
    await until(lambda: all(not member.h2.streams for member in house.ends.members))
    await until(lambda: house.app.resets == [0])


async def test_what_is_left_unread_counts_against_no_later_call(house: House) -> None:
    """Bodies that nobody took were given back, or the connection would stop in the end."""
    await house.open(lambda _, stream: ok(stream, b"early"), early=True)

    for _ in range(200):
        call = await house.client.request("POST", "/test.Echo/Unary", RPC, bytes(60_000), end=False)
        await call.until(lambda call=call: bool(call.trailers) or call.over)  # type: ignore[misc]

    assert all(member.h2.unread == 0 for member in house.ends.members)
