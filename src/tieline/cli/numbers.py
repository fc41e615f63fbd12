"""Checks of numbers that people type."""

from __future__ import annotations

import math
from typing import Final

import click

MAX_TIMEOUT_S: Final = 1_000_000.0
"""Longest time that can be asked for; the system takes no number of seconds that is much longer."""


def finite(context: click.Context, parameter: click.Parameter, given: float | None) -> float | None:
    """Refuse what is no number: it passes every check of a range."""
    if given is not None and not math.isfinite(given):
        raise click.BadParameter(f"{given} is no number of seconds.")
    return given
