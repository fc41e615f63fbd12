"""Runs ``supervise`` in a process of its own, with the stand-in sidecar: ``run_driver.py <plan as JSON>``."""

from __future__ import annotations

import json
import sys

from tieline.cli.console import Console
from tieline.cli.supervise import Limits, Plan, Ports, supervise


def main() -> int:
    """Run the plan that the argument holds."""
    given = json.loads(sys.argv[1])
    plan = Plan(
        app_id=given.get("app_id", "a"),
        command=tuple(given.get("command", ())),
        app_port=given.get("app_port", 0),
        app_address=given.get("app_address", "127.0.0.1"),
        ports=Ports(**given.get("ports", {})),
        resources=tuple(given.get("resources", ())),
        sidecar_flags=tuple(given.get("sidecar_flags", ())),
        drain_s=given.get("drain_s", 5.0),
        as_json=given.get("as_json", False),
    )
    limits = Limits(**given.get("limits", {}))
    return supervise(plan, Console(as_json=plan.as_json), sidecar_command=given["sidecar"], limits=limits)


if __name__ == "__main__":
    sys.exit(main())
