"""Metric families as Prometheus reads them: the text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from math import inf, isnan
from typing import Final

from tieline.telemetry.families import Counter, Histogram, Shown

MEDIA_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8; escaping=underscores"

_LABEL_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def render(families: Iterable[Shown]) -> Iterator[str]:
    """Yield the text piece by piece: the head of a family, then a piece for each child, whole lines all of them.

    A child is rendered at one go, so its numbers fit each other. Families without children are left out (O-21).
    """
    for family in families:
        samples = family.samples()
        if not samples:
            continue
        yield f"# HELP {family.name} {family.help_text.translate(_HELP_ESCAPES)}\n# TYPE {family.name} {family.kind}\n"
        for values, child in samples:
            labels = _labels(family.labels, values)
            if isinstance(child, Histogram):
                yield _histogram(family.name, labels, child)
            else:
                number = child.value if isinstance(child, Counter) else child
                yield (
                    f"{family.name}{{{labels}}} {_number(number)}\n" if labels else f"{family.name} {_number(number)}\n"
                )


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    # Bytes that were no UTF-8 may have come in as lone surrogates, which no encoder takes.
    return value.translate(_LABEL_ESCAPES).encode("utf-8", "replace").decode()


def _histogram(name: str, labels: str, histogram: Histogram) -> str:
    before = f"{name}_bucket{{{labels},le=" if labels else f"{name}_bucket{{le="
    lines = []
    count = 0
    for le, added in zip(_bounds(histogram.bounds), histogram.counts, strict=True):
        count += added
        lines.append(f"{before}{le}{count}\n")
    braced = f"{{{labels}}}" if labels else ""
    lines.append(f"{name}_sum{braced} {_number(histogram.sum)}\n{name}_count{braced} {count}\n")
    return "".join(lines)


@cache  # one entry for each set of buckets that is configured: two or three
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """Return what stands behind ``le=``, the blank before the number included."""
    return (*(f'"{bound_text(bound)}"}} ' for bound in bounds), '"+Inf"} ')


def bound_text(bound: float) -> str:
    """Return a bound as Go writes it, since queries compare it as text: ``1.048576e+06``, but ``100000``."""
    if bound < 1e6:
        return repr(float(bound)).removesuffix(".0")
    texts = (f"{bound:.{precision}e}" for precision in range(17))
    return next(text for text in texts if float(text) == bound)


def _number(number: float) -> str:
    if isinstance(number, int):
        return str(number)
    if isnan(number):
        return "NaN"
    if number in (inf, -inf):
        return "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
