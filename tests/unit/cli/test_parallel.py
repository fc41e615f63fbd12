"""The same work on several things at once."""

from __future__ import annotations

import threading

import pytest

from tieline.cli.parallel import in_parallel


def test_results_come_in_the_order_of_the_things_whoever_is_first() -> None:
    """The first thing is done last."""
    others = threading.Barrier(3)
    first = threading.Event()

    def work(number: int) -> int | None:
        if number == 0:
            assert first.wait(10)
            return None
        if others.wait(10) == 0:
            first.set()
        return number

    assert in_parallel(work, [0, 1, 2, 3], 4) == [None, 1, 2, 3]


def test_no_more_are_at_work_than_told() -> None:
    lock, seen = threading.Lock(), [0, 0]

    def work(_: int) -> None:
        with lock:
            seen[0] += 1
            seen[1] = max(seen)
        with lock:
            seen[0] -= 1

    in_parallel(work, range(200), 3)

    assert 1 <= seen[1] <= 3
    assert in_parallel(work, [], 3) == []


def test_an_error_reaches_the_caller() -> None:
    def work(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        in_parallel(work, [1, 0, 2], 2)
