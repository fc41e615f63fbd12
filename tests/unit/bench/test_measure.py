"""How the bench turns raw figures into rows."""

import pytest

from bench.errors import BenchError
from bench.instructions import parse_callgrind, parse_perf
from bench.measure import bystander_note, in_turn, latency_rows, parse_wrk


def a_round(target: str, number: int, ms: float) -> dict[str, object]:
    return {"target": target, "round": number, "p50": ms, "p90": ms, "p99": ms, "max": ms}


def test_each_round_begins_with_another_one() -> None:
    assert list(in_turn(["a", "b"], 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_added_latency_is_the_median_over_rounds_of_the_difference_within_a_round() -> None:
    direct = [a_round("direct", number, ms) for number, ms in enumerate([0.1, 5.0, 0.1])]
    ours = [a_round("ours", number, ms) for number, ms in enumerate([0.5, 5.5, 9.1])]
    envoy = [a_round("envoy", number, ms) for number, ms in enumerate([0.6, 5.6, 0.6])]

    rows = latency_rows([*direct, *ours, *envoy], "")

    assert rows[0].ours == pytest.approx(0.5)
    assert rows[0].envoy == pytest.approx(0.5)
    assert [row.work.rsplit(" ", 1)[1] for row in rows if row.budget] == ["p50", "p99"]


def test_figures_taken_on_a_busy_machine_carry_a_warning() -> None:
    assert bystander_note(0.05) == ""
    assert bystander_note(0.5).startswith("other programs kept 0.50 CPUs busy")


def test_errors_that_wrk_reports_are_passed_on() -> None:
    problems: list[str] = []
    output = "  Non-2xx or 3xx responses: 12\nRequests/sec:  17870.35\nTransfer/sec: 20.0MB\n"

    rate = parse_wrk(output, problems.append)

    assert rate == 17870.35
    assert problems == ["Non-2xx or 3xx responses: 12"]


def test_wrk_without_a_rate_is_a_failure() -> None:
    with pytest.raises(BenchError, match="no rate"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n", lambda problem: None)


def test_instruction_counts_are_read_from_either_tool() -> None:
    assert parse_perf("81234567,,instructions:u,51230000,100.00,,\n") == 81234567
    assert parse_callgrind("events: Ir\nsummary: 4711\n") == 4711
    with pytest.raises(BenchError, match="perf counted nothing"):
        parse_perf("<not supported>,,instructions:u,0,100.00,,\n")
