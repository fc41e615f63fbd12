"""The page about metrics names all that can be shown, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tieline.telemetry.metrics import Metrics
from tieline.telemetry.process import process_readings
from tieline.telemetry.readings import add_readings

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_about_metrics_is_complete() -> None:
    metrics = Metrics("me", increased_cardinality=True)
    add_readings(metrics, version="1", listeners={}, peer_connections=lambda: 0, waiting_for_app=lambda: 0)
    families = [*metrics.shown(), *process_readings()]
    text = PAGE.read_text()

    assert set(re.findall(r"`((?:dapr|tieline|process|python)_\w+)`", text)) == {family.name for family in families}
    rows = {name: row for row in text.splitlines() if row.startswith("|") for name in re.findall(r"^\| `(\w+)`", row)}
    for family in families:
        if family.name in rows:
            assert f"| {family.kind} |" in rows[family.name], family.name
