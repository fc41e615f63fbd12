"""Which failed calls are sent again, how often, and what the caller is told in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from tieline.errors import (
    GrpcCode,
    PeerFailed,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    TielineError,
    UnknownTarget,
    WrongPeer,
)
from tieline.middleware.attempts import KEPT_BYTES, Attempts
from tieline.model import AnyBody, CallRecord, Cause, Headers, Invocation, Reply, Target

OK = Reply(200, [])


class Path:
    """The rest of the path: reads the body, and ends each try as told; with a ledger of bodies and pauses."""

    def __init__(self, *ends: TielineError | Reply) -> None:
        self._ends = list(ends)
        self.bodies: list[bytes] = []
        self.slept: list[float] = []
        self.now = 0.0
        self.takes_s = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now

    async def __call__(self, call: Invocation) -> Reply:
        body = call.body
        self.bodies.append(body if isinstance(body, bytes) else b"".join([piece async for piece in pieces(body)]))
        end = self._ends.pop(0)
        self.now += self.takes_s
        if isinstance(end, TielineError):
            raise end
        return end


async def pieces(body: AnyBody) -> AsyncIterator[bytes]:
    assert not isinstance(body, bytes)
    while piece := await body.read():
        yield piece


class Pieces:
    """A body that comes in pieces."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)
        self.trailers: Headers = []

    async def read(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""

    def abandon(self) -> None:
        raise AssertionError("the body belongs to all tries")


async def go(path: Path, verb: bytes = b"POST", body: AnyBody = b"whole", length: int | None = 5) -> Reply:
    target = Target("callee", "default", "callee")
    call = Invocation(target, verb, b"x", b"x", b"", [], body, length, CallRecord())
    return await Attempts(path.sleep, path.clock)(call, path)


def unreachable() -> PeerUnreachable:
    return PeerUnreachable("nobody there")


def lost(*, before_answer: bool = True) -> PeerLost:
    error = PeerLost("gone")
    error.before_answer = before_answer
    return error


def lately_known() -> UnknownTarget:
    error = UnknownTarget("couldn't find service: callee")
    error.lately_known = True
    return error


@pytest.mark.rule("H-89")
@pytest.mark.parametrize(
    ("verb", "error", "slept"),
    [
        (b"POST", unreachable(), [1.0]),
        (b"POST", PeerRefused("not processed"), [0.0]),
        (b"POST", lately_known(), [1.0]),
        (b"GET", lost(), [1.0]),
        (b"PUT", lost(), [1.0]),
    ],
)
async def test_what_did_no_harm_is_sent_again(verb: bytes, error: TielineError, slept: Sequence[float]) -> None:
    path = Path(error, OK)

    assert await go(path, verb) is OK

    assert path.bodies == [b"whole", b"whole"]
    assert path.slept == [pause for pause in slept if pause]


@pytest.mark.rule("H-89")
@pytest.mark.parametrize(("takes_s", "slept"), [(0.25, [0.75, 0.75, 0.75]), (1.0, []), (5.0, [])])
async def test_what_a_try_took_counts_towards_the_pause_after_it(takes_s: float, slept: list[float]) -> None:
    path = Path(unreachable(), lately_known(), unreachable(), OK)
    path.takes_s = takes_s

    assert await go(path) is OK

    assert path.slept == slept


async def test_the_sidecar_of_another_app_is_not_waited_for() -> None:
    path = Path(*(WrongPeer("not mine") for _ in range(4)))

    with pytest.raises(TielineError) as caught:
        await go(path)

    assert path.slept == []
    assert caught.value.cause is Cause.NAME_UNKNOWN


@pytest.mark.rule("H-89")
@pytest.mark.parametrize(
    ("verb", "error"),
    [
        (b"POST", lost()),
        (b"PATCH", lost()),
        (b"GET", lost(before_answer=False)),
        (b"GET", UnknownTarget("never known")),
        (b"GET", PeerFailed("its app is broken")),
    ],
)
async def test_what_may_have_run_is_not(verb: bytes, error: TielineError) -> None:
    path = Path(error)

    with pytest.raises(TielineError) as caught:
        await go(path, verb)

    assert caught.value is error
    assert path.slept == []


@pytest.mark.rule("H-85", "H-89")
async def test_after_three_more_tries_the_caller_is_told_so() -> None:
    path = Path(*(unreachable() for _ in range(4)))

    with pytest.raises(TielineError) as caught:
        await go(path)

    assert path.slept == [1.0, 1.0, 1.0]
    assert caught.value.detail == (
        "failed to invoke target callee after 3 retries. Error: rpc error: code = Unavailable desc = nobody there"
    )
    assert caught.value.cause == "peer-unreachable"


async def test_a_verdict_of_the_last_try_is_told_as_it_is() -> None:
    """Three times nobody was there; then somebody was, and said no."""
    verdict = PeerFailed("access denied", grpc_code=GrpcCode.PERMISSION_DENIED)
    path = Path(unreachable(), unreachable(), unreachable(), verdict)

    with pytest.raises(PeerFailed) as caught:
        await go(path)

    assert caught.value is verdict
    assert caught.value.http_status == 403


async def test_a_short_stream_is_kept_and_sent_whole_again() -> None:
    path = Path(unreachable(), OK)

    await go(path, body=Pieces(b"a", b"b" * (KEPT_BYTES - 1)), length=None)

    assert path.bodies == [b"a" + b"b" * (KEPT_BYTES - 1)] * 2


async def test_a_stream_that_was_read_beyond_what_is_kept_is_not() -> None:
    error = unreachable()
    path = Path(error)

    with pytest.raises(PeerUnreachable) as caught:
        await go(path, body=Pieces(b"a", b"b" * KEPT_BYTES), length=None)

    assert caught.value is error
