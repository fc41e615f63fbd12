"""What somebody who wrote a word most likely meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LEAST_ALIKE: Final = 0.7
"""From 0, nothing in common, to 1, the same word."""


def closest(word: str, known: Iterable[str]) -> str:
    """Return the known word that this one is a misspelling of; empty if there is none."""
    by_lower = {one.lower(): one for one in known}
    found = by_lower.get(word.lower())
    if found is not None:
        return found
    import difflib  # costs a millisecond or two that only a mistake need pay

    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=LEAST_ALIKE)
    return by_lower[near[0]] if near else ""
