"""The soak's judgement: growth is found, and noise is none."""

import random

import pytest

from bench.growth import MIB, Finding, Sample, findings, growth, render


def test_a_steady_rise_is_told_as_what_it_comes_to() -> None:
    assert growth([100.0 + 3 * step for step in range(11)]) == pytest.approx(30)


def test_noise_and_one_jump_that_is_taken_back_are_no_growth() -> None:
    noise = random.Random(1)
    figures = [1000 + noise.uniform(-5, 5) for _ in range(15)]
    figures[7] += 400

    assert abs(growth(figures)) < 10


def test_a_rise_is_found_within_noise() -> None:
    noise = random.Random(2)

    assert growth([1000 + 10 * step + noise.uniform(-5, 5) for step in range(15)]) == pytest.approx(140, rel=0.1)


def test_one_point_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two points"):
        growth([1.0])


@pytest.mark.parametrize(
    ("after", "verdicts"),
    [
        (Sample(50 * MIB, 10, 5), ["ok", "ok", "ok"]),
        (Sample(50 * MIB, 9, 4), ["ok", "ok", "ok"]),
        (Sample(50 * MIB, 11, 5), ["ok", "over", "ok"]),
        (Sample(50 * MIB, 10, 6), ["ok", "ok", "over"]),
    ],
)
def test_a_descriptor_or_task_that_stays_is_growth(after: Sample, verdicts: list[str]) -> None:
    before = Sample(40 * MIB, 10, 5)
    running = [Sample(50 * MIB + step, 30, 20) for step in range(5)]

    rows = findings("work", "caller", before, running, after, most_bytes=MIB)

    assert [row.verdict for row in rows] == verdicts


def test_memory_that_rises_to_the_end_is_growth() -> None:
    running = [Sample(50 * MIB + step * MIB, 10, 5) for step in range(5)]

    rows = findings("work", "caller", running[0], running, running[-1], most_bytes=MIB)

    assert [(row.figure, row.verdict) for row in rows] == [(4, "over"), (0, "ok"), (0, "ok")]


def test_the_table_says_what_is_over() -> None:
    rows = [Finding(work="a", figure=2.5, unit="MiB", limit=2), Finding(work="told only", figure=1, unit="ms")]

    assert render(rows).splitlines() == [
        "work       figure  unit  limit  verdict",
        "a             2.5  MiB       2  over",
        "told only       1  ms",
    ]
