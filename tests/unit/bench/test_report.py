"""The figures and the table of the bench."""

import pytest

from bench.report import Budget, Row, median, percentile, render_table, to_json


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(100, 0.5, 50), (100, 0.99, 99), (100, 1.0, 100), (1, 0.5, 1), (3, 0.5, 2), (10, 0.99, 10), (1000, 0.999, 999)],
)
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(
    count: int, share: float, expected: int
) -> None:
    assert percentile(range(1, count + 1), share) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_median_of_nothing_is_no_figure() -> None:
    assert median([]) is None
    assert median([3.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("ours", "envoy", "budget", "verdict"),
    [
        (120.0, 100.0, Budget(1.2, of_envoy=True), "ok"),
        (121.0, 100.0, Budget(1.2, of_envoy=True), "over"),
        (45.0, 60.0, Budget(45.0), "ok"),
        (45.1, 60.0, Budget(45.0), "over"),
        (0.2, None, Budget(0.3), "ok"),
        (None, 100.0, Budget(1.2, of_envoy=True), "unknown"),
        (1.0, 0.0, Budget(1.2, of_envoy=True), "unknown"),
        (1.0, 1.0, None, ""),
    ],
)
def test_a_row_is_held_against_its_budget(
    ours: float | None, envoy: float | None, budget: Budget | None, verdict: str
) -> None:
    assert Row(work="w", unit="u", ours=ours, envoy=envoy, budget=budget).verdict == verdict


def test_the_table_is_aligned_and_explains_what_is_missing() -> None:
    rows = [
        Row(work="calls", unit="calls/s", ours=18_000.4, envoy=9_000.2),
        Row(work="growth", unit="MiB", ours=None, envoy=3.25, budget=Budget(16), note="ours: it fell over"),
    ]

    lines = render_table(rows).splitlines()

    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2].split("|")[3:6] == [" 18,000 ", " 9,000 ", "       2.00 "]
    assert "growth [1]" in lines[3]
    assert "unknown" in lines[3]
    assert lines[4] == "[1] ours: it fell over"


def test_the_json_carries_ratio_and_verdict() -> None:
    row = Row(work="w", unit="u", ours=1.0, envoy=2.0, budget=Budget(1.2, of_envoy=True))

    (found,) = to_json([row])

    assert (found["ours"], found["ratio"], found["verdict"]) == (1.0, 0.5, "ok")
