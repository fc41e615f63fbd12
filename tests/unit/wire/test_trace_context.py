"""Trace context: what is continued, what is started, what the answer says."""

from __future__ import annotations

import re

import pytest

from tieline.model import Headers
from tieline.wire.headers import survey
from tieline.wire.trace_context import (
    MAX_TRACESTATE_BYTES,
    Context,
    IdSource,
    TraceParent,
    add_to_answer,
    continue_or_start,
    is_exempt,
    is_tracestate,
    parse_traceparent,
    render_traceparent,
)

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
VALID = b"00-%b-%b-01" % (TRACE, SPAN)
FRESH = b"00-%b-%b-00" % (b"1" * 32, b"2" * 16)


def traced(headers: Headers) -> tuple[Headers, Context]:
    """What a request's fields become on their way through the caller's sidecar, and the context that holds."""
    kept, noted = survey(headers)
    noted = noted or {}
    context = continue_or_start(noted.get(b"traceparent"), noted.get(b"tracestate"), new_ids)
    return kept + context.fields, context


def parts(context: Context) -> tuple[bytes, bytes]:
    return context.traceparent, context.tracestate


def new_ids() -> tuple[bytes, bytes]:
    return b"1" * 32, b"2" * 16


# ── the format ──


@pytest.mark.rule("O-6")
@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (VALID, 1),
        (VALID[:-2] + b"00", 0),
        (VALID[:-2] + b"ff", 255),
        (b"01" + VALID[2:], 1),
        (b"fe" + VALID[2:], 1),
        (b"01" + VALID[2:] + b"-extra", 1),
        (b"cc" + VALID[2:] + b"-WHAT-ever", 1),
        (b"cc" + VALID[2:] + b"-", 1),
    ],
)
def test_a_valid_traceparent_has_three_parts_that_count(value: bytes, flags: int) -> None:
    assert parse_traceparent(value) == TraceParent(TRACE, SPAN, flags)


INVALID = [
    b"",
    b"nonsense",
    VALID.replace(b"0af", b"0AF"),
    VALID.replace(TRACE, b"0" * 32),
    VALID.replace(SPAN, b"0" * 16),
    b"ff" + VALID[2:],
    b"ff" + VALID[2:] + b"-extra",
    VALID + b"-extra",
    VALID + b"-",
    b"01" + VALID[2:] + b"0",
    VALID[:-1],
    VALID[:-1] + b"g",
    VALID.replace(b"-", b"_"),
    VALID[1:3] + VALID[:1] + VALID[3:],
    VALID.replace(b"9c-b7", b"9cb-7"),
    VALID.replace(b"31-01", b"3-101"),
]


@pytest.mark.rule("O-6")
@pytest.mark.parametrize("value", INVALID)
def test_an_invalid_traceparent_counts_as_absent(value: bytes) -> None:
    assert parse_traceparent(value) is None


@pytest.mark.rule("O-6")
def test_a_traceparent_is_written_in_version_00() -> None:
    assert render_traceparent(TRACE, SPAN, 1) == VALID
    assert render_traceparent(TRACE, SPAN, 255) == VALID[:-2] + b"ff"


# ── requests ──


@pytest.mark.rule("H-55", "O-7")
@pytest.mark.parametrize("state", [[], [(b"tracestate", b"a=1,b=2")], [(b"tracestate", b"=,,=x y")]])
def test_a_valid_context_passes_on_unchanged(state: Headers) -> None:
    headers = [(b"x-a", b"1"), (b"traceparent", VALID), *state, (b"x-b", b"2")]

    sent, context = traced(headers)

    assert sorted(sent) == sorted(headers)
    assert parts(context) == (VALID, state[0][1] if state else b"")
    assert context.trace_id == TRACE


@pytest.mark.rule("H-55")
def test_without_a_context_a_fresh_one_is_sent_that_is_not_sampled() -> None:
    headers = [(b"x-a", b"1")]

    sent, context = traced(headers)

    assert sent == [(b"x-a", b"1"), (b"traceparent", FRESH)]
    assert parts(context) == (FRESH, b"")
    assert headers == [(b"x-a", b"1")]


@pytest.mark.rule("H-160", "O-6", "O-7")
@pytest.mark.parametrize("value", INVALID)
def test_an_invalid_context_is_replaced_and_its_state_dropped(value: bytes) -> None:
    headers = [(b"traceparent", value), (b"x-a", b"1"), (b"tracestate", b"a=1")]

    sent, context = traced(headers)

    assert sent == [(b"x-a", b"1"), (b"traceparent", FRESH)]
    assert parts(context) == (FRESH, b"")


@pytest.mark.rule("O-7")
def test_a_state_alone_does_not_travel() -> None:
    assert traced([(b"tracestate", b"a=1")])[0] == [(b"traceparent", FRESH)]


@pytest.mark.rule("H-160", "O-6")
def test_a_higher_version_is_rewritten() -> None:
    headers = [(b"traceparent", b"01" + VALID[2:] + b"-extra"), (b"tracestate", b"a=1")]

    sent, context = traced(headers)

    assert sent == [(b"traceparent", VALID), (b"tracestate", b"a=1")]
    assert parts(context) == (VALID, b"a=1")


@pytest.mark.rule("H-55", "O-6", "O-7")
def test_of_several_lines_the_first_counts() -> None:
    other = VALID.replace(b"0af", b"1af")
    headers = [
        (b"traceparent", VALID),
        (b"traceparent", other),
        (b"tracestate", b"a=1"),
        (b"tracestate", b"b=2"),
    ]

    sent, context = traced(headers)

    assert sent == [(b"traceparent", VALID), (b"tracestate", b"a=1")]
    assert parts(context) == (VALID, b"a=1")


@pytest.mark.rule("H-55", "H-56")
def test_paths_of_health_are_exempt() -> None:
    assert is_exempt(b"/v1.0/healthz")
    assert is_exempt(b"/v1.0/invoke/callee/method/my/healthz/x")
    assert not is_exempt(b"/v1.0/invoke/callee/method/health")


# ── answers ──


@pytest.mark.rule("H-68", "O-7")
def test_an_answer_tells_the_context() -> None:
    headers: Headers = [(b"x-a", b"1")]

    add_to_answer(headers, Context(VALID, b"a=1,b=2"))

    assert headers == [(b"x-a", b"1"), (b"traceparent", VALID), (b"tracestate", b"a=1,b=2")]


@pytest.mark.rule("H-68")
def test_the_apps_own_context_is_left_alone() -> None:
    own = [(b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"), (b"tracestate", b"app=1")]
    headers = own.copy()

    add_to_answer(headers, Context(VALID, b"a=1"))

    assert headers == own


@pytest.mark.rule("H-68")
def test_the_apps_own_state_is_not_doubled() -> None:
    headers = [(b"tracestate", b"app=1")]

    add_to_answer(headers, Context(VALID, b"a=1"))

    assert headers == [(b"tracestate", b"app=1"), (b"traceparent", VALID)]


@pytest.mark.rule("O-7")
@pytest.mark.parametrize("state", [b"", b"=,,=x y", b",".join(b"k%d=%b" % (i, b"v" * 30) for i in range(20))])
def test_a_state_that_is_broken_or_long_does_not_come_back(state: bytes) -> None:
    headers: Headers = []

    add_to_answer(headers, Context(VALID, state))

    assert headers == [(b"traceparent", VALID)]


@pytest.mark.rule("O-7")
@pytest.mark.parametrize(
    ("state", "well_formed"),
    [
        (b"a=1", True),
        (b"a=1, b=x y", True),
        (b"a=1,,b=2", True),
        (b"tenant@sys=x", True),
        (b"0tenant@sys=x", True),
        (b"a=" + b"v" * (MAX_TRACESTATE_BYTES // 2), True),
        (b"", False),
        (b",", False),
        (b"a", False),
        (b"a=", False),
        (b"A=1", False),
        (b"0=1", False),
        (b"a=1=2", False),
        (b"a=1,a=2", False),
        (b"a=\x01", False),
        (b",".join(b"k%d=1" % number for number in range(32)), True),
        (b",".join(b"k%d=1" % number for number in range(33)), False),
    ],
)
def test_a_state_is_well_formed_as_w3c_says(state: bytes, well_formed: bool) -> None:
    assert is_tracestate(state) is well_formed


# ── ids ──


def test_ids_are_valid_and_differ() -> None:
    source = IdSource()

    drawn = [source() for _ in range(1000)]

    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch(rb"[0-9a-f]{32}", trace) and re.fullmatch(rb"[0-9a-f]{16}", span) for trace, span in drawn)
    assert all(parse_traceparent(render_traceparent(trace, span, 0)) for trace, span in drawn)


def test_two_sources_draw_different_ids() -> None:
    assert IdSource()() != IdSource()()
    assert IdSource(seed=b"x")() == IdSource(seed=b"x")()
