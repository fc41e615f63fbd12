"""What Prometheus calls metric families: a name, a help text, label names, and one child per tuple of label values.

The number of children is bounded, since label values come from callers. Nothing is rendered here; a renderer asks each
family for its ``samples``. A family without any has not been recorded yet and is not shown (O-21).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

MAX_CHILDREN: Final = 1024
"""Most children of one family; further combinations of label values share those of ``OVERFLOW``."""
MAX_OVERFLOW: Final = 128
"""Most of these; then one child takes what is left."""
OVERFLOW: Final = "__other__"
"""Stands for all values of the labels in ``OPEN_LABELS`` that come after the bound."""
OPEN_LABELS: Final = frozenset({"dst_app_id", "grpc_server_method", "path", "src_app_id"})
"""Labels whose values callers choose. The others keep theirs beyond the bound, so that errors still show."""


Rewrite: TypeAlias = Callable[[str], str]


class Rule(NamedTuple):
    """A rule of a Configuration, ready for use: which metric, and what to do with which of its labels (O-25).

    ``label_rules`` makes them.
    """

    metric: str
    label: str
    rewrite: Rewrite


def metric_key(name: str) -> str:
    """Return what a rule and a metric are compared by: without ``dapr_`` in front, slashes for underscores."""
    return name.removeprefix("dapr_").replace("_", "/")


def for_metric(rules: Sequence[Rule], name: str, labels: Sequence[str]) -> tuple[tuple[int, Rewrite], ...]:
    """Return what to do with the values of one metric: the index of a label, and its rewriting, in order."""
    key = metric_key(name)
    return tuple(
        (labels.index(rule.label), rule.rewrite) for rule in rules if rule.metric == key and rule.label in labels
    )


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """How often values fell into each bucket, and their sum.

    Attributes:
        bounds: Inclusive upper bounds, ascending, without infinity.
        counts: One more than bounds; the last is for what is over all of them. Not cumulative.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self.counts)


Sample: TypeAlias = tuple[tuple[str, ...], Counter | Histogram | float]
"""Label values, and what was counted under them."""


class Shown(Protocol):
    """What a renderer needs of a family.

    Attributes:
        kind: ``counter``, ``gauge`` or ``histogram``.
        labels: Their names, in order.
    """

    name: str
    kind: str
    help_text: str
    labels: tuple[str, ...]

    def samples(self) -> Sequence[Sample]:
        """Return what there is to show, in order of the label values."""
        ...


Child = TypeVar("Child", Counter, Histogram)


class Family(Generic[Child]):
    """One metric that is recorded: its description, and its children by label values.

    Args:
        labels: Names, the first is always ``app_id``.
        rewrites: What to do with values before they are looked up: the index of a label, and the rewriting (O-25).
        full: Told when the bound is hit.

    Attributes:
        kind: ``counter`` or ``histogram``.
        children: At most ``MAX_CHILDREN``, ``MAX_OVERFLOW``, and one more.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        help_text: str,
        labels: tuple[str, ...],
        make_child: Callable[[], Child],
        *,
        rewrites: Sequence[tuple[int, Rewrite]] = (),
        full: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.help_text = help_text
        self.labels = labels
        self.children: dict[tuple[str, ...], Child] = {}
        self._make_child: Callable[[], Child] = make_child
        self._rewrites = rewrites
        self._full = full

    def child(self, *values: str) -> Child:
        """Return the child for these label values, one of the overflow if there are too many others."""
        if self._rewrites:
            values = self._rewritten(values)
        found = self.children.get(values)
        if found is not None:
            return found
        if len(self.children) >= MAX_CHILDREN and OVERFLOW not in values:
            if self._full is not None:
                self._full(self.name)
            values = tuple(
                OVERFLOW if label in OPEN_LABELS else value for label, value in zip(self.labels, values, strict=True)
            )
        if len(self.children) >= MAX_CHILDREN + MAX_OVERFLOW and values not in self.children:
            values = (values[0], *(OVERFLOW for _ in values[1:]))
        return self.children.setdefault(values, self._make_child())

    def _rewritten(self, values: tuple[str, ...]) -> tuple[str, ...]:
        changed = list(values)
        for index, rewrite in self._rewrites:
            changed[index] = rewrite(changed[index])
        return tuple(changed)

    def samples(self) -> Sequence[Sample]:
        """See ``Shown``."""
        return sorted(self.children.items(), key=_values)


class Reading:
    """A metric that is read when somebody asks for it, so that it costs nothing until then.

    Args:
        read: Returns label values and numbers, a few only. What it cannot read it leaves out.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        help_text: str,
        labels: tuple[str, ...],
        read: Callable[[], Iterable[tuple[tuple[str, ...], float]]],
    ) -> None:
        self.name = name
        self.kind = kind
        self.help_text = help_text
        self.labels = labels
        self._read = read

    def samples(self) -> Sequence[Sample]:
        """See ``Shown``."""
        return sorted(self._read(), key=_values)


def _values(sample: tuple[tuple[str, ...], object]) -> tuple[str, ...]:
    return sample[0]
