"""A strict reader of Prometheus's text format, version 0.0.4: what it does not know, or finds twice, is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_HELP: Final = re.compile(rf"# HELP ({_NAME}) ((?:[^\\\n]|\\\\|\\n)*)")
_TYPE: Final = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram)")
_LABEL: Final = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_SAMPLE: Final = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")
_ONE_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
_UNESCAPED: Final = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Labels = tuple[tuple[str, str], ...]
"""Names and values, in order."""


@dataclass
class Distribution:
    """A histogram's child.

    Attributes:
        buckets: Cumulative counts by the text of their bound.
    """

    buckets: dict[str, float] = field(default_factory=dict)
    sum: float | None = None
    count: float | None = None


@dataclass
class Exposed:
    """One family.

    Attributes:
        values: Of counters and gauges.
        distributions: Of histograms.
    """

    help_text: str
    kind: str
    values: dict[Labels, float] = field(default_factory=dict)
    distributions: dict[Labels, Distribution] = field(default_factory=dict)

    def numbers(self, *names: str) -> dict[tuple[str, ...], float]:
        """Return values, or counts of histograms, by the values of some labels."""
        counts = {labels: found.count or 0 for labels, found in self.distributions.items()}
        return {tuple(dict(labels)[name] for name in names): value for labels, value in (self.values | counts).items()}


def read(text: str) -> dict[str, Exposed]:
    """Return the families by name.

    Raises:
        AssertionError: The text is not what the format allows, is out of order, or says a thing twice.
    """
    assert text == "" or text.endswith("\n")
    found: dict[str, Exposed] = {}
    lines = iter(text.split("\n")[:-1])
    name = ""
    for line in lines:
        if line.startswith("# HELP"):
            helped, typed = _HELP.fullmatch(line), _TYPE.fullmatch(next(lines))
            assert helped is not None, line
            assert typed is not None, line
            assert helped[1] == typed[1], line
            assert helped[1] not in found, line
            _complete(found.get(name))
            name = helped[1]
            found[name] = Exposed(_unescape(helped[2]), typed[2])
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None, line
            _add(found[name], name, sample)
    _complete(found.get(name))
    assert list(found) == sorted(found)
    return found


def _add(family: Exposed, name: str, sample: re.Match[str]) -> None:
    labels = tuple((label[1], _unescape(label[2])) for label in _ONE_LABEL.finditer(sample[2] or ""))
    assert len(dict(labels)) == len(labels), sample[0]
    value = float(sample[3])
    if family.kind != "histogram":
        assert sample[1] == name, sample[0]
        assert labels not in family.values, sample[0]
        assert not family.values or labels > list(family.values)[-1], sample[0]
        family.values[labels] = value
        return
    part = sample[1].removeprefix(name)
    if part == "_bucket":
        assert labels[-1][0] == "le", sample[0]
        buckets = family.distributions.setdefault(labels[:-1], Distribution()).buckets
        assert labels[-1][1] not in buckets, sample[0]
        buckets[labels[-1][1]] = value
    elif part == "_sum":
        assert family.distributions[labels].sum is None, sample[0]
        family.distributions[labels].sum = value
    else:
        assert part == "_count", sample[0]
        assert family.distributions[labels].count is None, sample[0]
        family.distributions[labels].count = value


def _complete(family: Exposed | None) -> None:
    """Fail if a family has no samples, or a histogram's numbers do not fit each other."""
    if family is None:
        return
    assert family.values or family.distributions
    for found in family.distributions.values():
        assert found.sum is not None
        bounds, counts = [float(bound) for bound in found.buckets], list(found.buckets.values())
        assert bounds == sorted(set(bounds))
        assert counts == sorted(counts)
        assert bounds[-1] == float("inf")
        assert counts[-1] == found.count


def _unescape(text: str) -> str:
    return re.sub(r"\\.", lambda escape: _UNESCAPED[escape[0]], text)
