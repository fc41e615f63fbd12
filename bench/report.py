"""Turns measurements into the table and the JSON: medians, percentiles, ratios, and what they are held against."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

COLUMNS = ("work", "unit", "ours", "envoy", "ours/envoy", "budget", "verdict")


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a figure of ours may be: times Envoy's where ``of_envoy``, else in the unit of the row."""

    limit: float
    of_envoy: bool = False

    def render(self) -> str:
        return f"<= {self.limit:g}" + (" x" if self.of_envoy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. A figure is ``None`` where there was none to be had; ``note`` says why."""

    work: str
    unit: str
    ours: float | None = None
    envoy: float | None = None
    budget: Budget | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over Envoy's; ``None`` when one is missing or Envoy's is too close to nothing to divide by."""
        if self.ours is None or self.envoy is None or self.envoy <= 0:
            return None
        return self.ours / self.envoy

    @property
    def verdict(self) -> str:
        """``ok``, ``over``, ``unknown`` for a budget that could not be checked, or "" without a budget."""
        if self.budget is None:
            return ""
        held = self.ratio if self.budget.of_envoy else self.ours
        if held is None:
            return "unknown"
        return "ok" if held <= self.budget.limit else "over"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of sorted values: the smallest that ``share`` (0..1) of them do not exceed."""
    if not ordered:
        raise ValueError("no values")
    # Rounded first, since 0.99 * 100 is a little above 99 in floating point.
    rank = -int(-round(share * len(ordered), 9) // 1)
    return ordered[max(rank, 1) - 1]


def median(values: Sequence[float]) -> float | None:
    """Return the median, or ``None`` of nothing."""
    return statistics.median(values) if values else None


def render_table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned Markdown table, notes below it."""
    notes: list[str] = []
    lines = [list(COLUMNS)]
    for row in rows:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f" [{notes.index(row.note) + 1}]"
        lines.append(_cells(row, mark))
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    lines.insert(1, ["-" * width for width in widths])
    table = ["| " + " | ".join(_pad(line, widths)) + " |" for line in lines]
    return "\n".join(table + [f"[{number}] {note}" for number, note in enumerate(notes, 1)])


def to_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows as plain objects, with ratio and verdict worked out."""
    return [{**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows]


def _cells(row: Row, mark: str) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    budget = "" if row.budget is None else row.budget.render()
    return [row.work + mark, row.unit, _figure(row.ours), _figure(row.envoy), ratio, budget, row.verdict]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    # Text to the left; the three columns of figures to the right.
    return [
        cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
