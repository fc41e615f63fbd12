"""Waiting for a sidecar: one try, and tries until it is ready."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tieline.cli.wait import Address, is_listening, probe_outbound, wait_outbound


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FakeProbe:
    """Answers as told, then the last answer for ever."""

    def __init__(self, *answers: str | None) -> None:
        self._answers = list(answers)
        self.asked: list[Address] = []

    def __call__(self, address: Address) -> str | None:
        self.asked.append(address)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.mark.rule("H-13")
def test_it_asks_every_100_ms_until_the_sidecar_is_ready() -> None:
    """The end is silent and 0."""
    time, probe, out = FakeTime(), FakeProbe("refused", "status 500", None), io.StringIO()

    code = wait_outbound(3500, out=out, probe=probe, clock=time.clock, sleep=time.sleep)

    assert code == 0
    assert probe.asked == [("localhost", 3500)] * 3
    assert time.slept == [0.1, 0.1]
    assert out.getvalue() == "Dapr outbound NOT ready yet: refused (http://localhost:3500)\n"


@pytest.mark.rule("H-13")
def test_it_says_why_once_a_second_and_which_address_it_asks() -> None:
    time, probe, out = FakeTime(), FakeProbe("refused"), io.StringIO()

    wait_outbound(3500, timeout_s=3.0, out=out, probe=probe, clock=time.clock, sleep=time.sleep)

    lines = out.getvalue().splitlines()[:-1]
    assert lines == ["Dapr outbound NOT ready yet: refused (http://localhost:3500)"] * 3


@pytest.mark.rule("H-13")
def test_after_60_s_it_gives_up_with_the_last_error_and_0() -> None:
    """Scripts rely on 0 even then."""
    time, out = FakeTime(), io.StringIO()

    code = wait_outbound(3500, out=out, probe=FakeProbe("refused"), clock=time.clock, sleep=time.sleep)

    assert code == 0
    assert time.now == pytest.approx(160.0, abs=0.11)
    last = out.getvalue().splitlines()[-1]
    assert last == "timeout waiting for Dapr to become outbound ready. Last error: refused"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """A server that gives one answer and remembers what it was asked."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(4096))
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname(), asked
        thread.join()


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "health check returned status 500"),
        (b"SSH-2.0-x\r\n", "the answer is no HTTP: another program has this port"),
        (b"", "the answer is no HTTP: another program has this port"),
    ],
)
def test_one_try(answer: bytes, failure: str | None) -> None:
    """Only 204 is ready; anything else says why not."""
    with answering(answer) as (address, asked):
        found = probe_outbound(address)

    assert found == failure
    assert asked[0].startswith(b"GET /v1.0/healthz/outbound HTTP/1.1\r\n")


def test_nobody_there_is_a_reason_and_no_error(tmp_path: Path) -> None:
    """Neither a closed port nor a missing socket raises."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
        assert "refused" in (probe_outbound(address) or "")
        assert not is_listening(address)

    assert "No such file" in (probe_outbound(str(tmp_path / "no.socket")) or "")


def test_a_server_that_says_nothing_is_given_up() -> None:
    """One try is bounded too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert probe_outbound(listener.getsockname(), timeout_s=0.05) == "timed out"
        assert is_listening(listener.getsockname())
