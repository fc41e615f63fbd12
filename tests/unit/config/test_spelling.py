"""Guessing what somebody meant."""

from __future__ import annotations

import pytest

from tieline.config.spelling import closest

KEYS = ("features", "baseUrl", "nameResolution", "enabled")


@pytest.mark.parametrize(
    ("word", "guess"),
    [
        ("Features", "features"),
        ("baseURL", "baseUrl"),
        ("nameResolutions", "nameResolution"),
        ("enable", "enabled"),
        ("x", ""),
        ("", ""),
    ],
)
def test_a_slip_is_recognised_and_a_stranger_is_not(word: str, guess: str) -> None:
    assert closest(word, KEYS) == guess
