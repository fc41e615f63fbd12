"""A line for each failed call, within a budget of lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tieline.model import Attempt, CallRecord, Cause, Endpoint, Hop, Target
from tieline.telemetry.access_log import FAILURE_BURST, FAILURES_PER_S, MAX_TEXT, FailureLog

LOGGER = logging.getLogger("dapr.runtime.direct_messaging")


class FakeClock:
    """Time that is set by hand."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """What the log of direct calls gets at info and above."""
    handler = Lines()
    before = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler.records
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(before)


def a_failure(**changes: Any) -> CallRecord:
    record = CallRecord()
    record.target = Target("orders", "default", "orders.default")
    record.verb, record.method = b"POST", b"new"
    record.cause, record.hop = Cause.PEER_UNREACHABLE, Hop.PEER
    record.detail, record.hint = "10.0.0.1:50002 refused", "is it running?"
    record.status, record.duration_s = 500, 0.0123456
    record.trace_id = b"0af7651916cd43dd8448eb211c80319c"
    first, second = Attempt(Endpoint("10.0.0.1", 50002), 1.0), Attempt(None, 2.0)
    first.outcome = "peer-unreachable"
    record.attempts = (first, second)
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def fields_of(line: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = line.__dict__["fields"]
    return found


@pytest.mark.rule("O-42")
def test_a_failed_call_is_one_line_with_what_is_needed(lines: list[logging.LogRecord]) -> None:
    """At level info, in the scope of direct calls."""
    FailureLog().log_failure(a_failure())

    (line,) = lines
    assert (line.levelname, line.name) == ("INFO", "dapr.runtime.direct_messaging")
    assert line.getMessage() == "outbound call failed: 10.0.0.1:50002 refused"
    assert fields_of(line) == {
        "cause": "peer-unreachable",
        "hop": "peer",
        "target": "orders.default",
        "method": "new",
        "verb": "POST",
        "status": 500,
        "duration": 12.346,
        "trace_id": b"0af7651916cd43dd8448eb211c80319c",
        "attempts": "10.0.0.1:50002 peer-unreachable, - unfinished",
        "hint": "is it running?",
    }


def test_the_callee_says_who_called_and_whether_that_is_proven(lines: list[logging.LogRecord]) -> None:
    """A failure shows at both sides."""
    FailureLog().log_failure(a_failure(inbound=True, caller="shop", caller_verified=True))

    assert lines[0].getMessage().startswith("inbound call failed: ")
    assert fields_of(lines[0])["caller"] == "shop"
    assert fields_of(lines[0])["caller_verified"] is True


def test_a_call_without_a_cause_is_no_failure(lines: list[logging.LogRecord]) -> None:
    """Whatever the app answered."""
    FailureLog().log_failure(a_failure(cause=None, status=404))

    assert lines == []


def test_over_the_budget_failures_are_counted_and_told_later(lines: list[logging.LogRecord]) -> None:
    """A storm of failures does not become a storm of lines."""
    clock = FakeClock()
    log = FailureLog(clock)

    for _ in range(FAILURE_BURST + 7):
        log.log_failure(a_failure())
    assert len(lines) == FAILURE_BURST
    clock.now += 1.0
    log.log_failure(a_failure())

    told, last = lines[FAILURE_BURST:]
    assert told.getMessage() == f"7 failed calls were not logged, being over {FAILURES_PER_S} a second"
    assert fields_of(told) == {"suppressed": 7}
    assert last.getMessage().startswith("outbound call failed")
    for _ in range(FAILURES_PER_S):
        log.log_failure(a_failure())
    assert len(lines) == FAILURE_BURST + 2 + FAILURES_PER_S - 1


def test_at_the_end_what_was_left_out_is_told(lines: list[logging.LogRecord]) -> None:
    """Once."""
    log = FailureLog(FakeClock())
    for _ in range(FAILURE_BURST + 1):
        log.log_failure(a_failure())

    log.flush()
    log.flush()

    assert lines[-1].getMessage().startswith("1 failed calls were not logged")
    assert len(lines) == FAILURE_BURST + 1


def test_texts_of_callers_are_bounded(lines: list[logging.LogRecord]) -> None:
    """A method may be as long as a request head."""
    many = tuple(Attempt(Endpoint("h", number), 0.0) for number in range(20))

    FailureLog().log_failure(a_failure(method=b"m" * 5000, detail="d" * 5000, attempts=many))

    assert fields_of(lines[0])["method"] == "m" * (MAX_TEXT - 1) + "…"
    assert len(lines[0].getMessage()) < MAX_TEXT + 50
    assert str(fields_of(lines[0])["attempts"]).startswith("12 more, h:12 unfinished, ")


def test_with_the_level_off_no_token_is_spent(lines: list[logging.LogRecord]) -> None:
    """Nothing is written then, and nothing was left out later."""
    log = FailureLog(FakeClock())
    LOGGER.setLevel(logging.ERROR)
    for _ in range(FAILURE_BURST * 2):
        log.log_failure(a_failure())
    LOGGER.setLevel(logging.INFO)

    log.log_failure(a_failure())

    assert [line.getMessage() for line in lines] == ["outbound call failed: 10.0.0.1:50002 refused"]
