"""The same work on several things at once, in threads that never keep a command from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], things: Sequence[T], at_once: int) -> list[R]:
    """Return what the work gives for each thing, in their order; raise the first error.

    A pool of ``concurrent.futures`` would be waited for after Ctrl-C, until its threads have done all they do.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()
    for number in range(len(things)):
        todo.put(number)

    def run() -> None:
        while True:
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, work(things[number]), None))
            except BaseException as error:
                done.put((number, None, error))

    for _ in range(min(len(things), at_once)):
        threading.Thread(target=run, name="at once", daemon=True).start()
    results: dict[int, R] = {}
    for _ in things:
        number, result, error = done.get()
        if error is not None:
            raise error
        results[number] = result  # type: ignore[assignment]  # None only if that is what the work gives
    return [results[number] for number in range(len(things))]
