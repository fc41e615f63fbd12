"""``python -m bench``: measures, prints the table, and writes the JSON."""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import envoy, measure, report
from bench.errors import BenchError
from bench.processes import Envoy, House, Maker, add_ours, ours


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; ends the process with a usage text on bad ones."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; good for a first look only")
    parser.add_argument("--only", type=_measurements, default=list(measure.MEASUREMENTS), metavar="NAME,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--calls", type=int, help="calls a round of the CPU measurement")
    add_ours(parser)
    options = parser.parse_args(arguments)
    if options.calls is not None and options.calls < 100:
        parser.error("--calls: fewer than 100 calls say nothing")
    return options


def _measurements(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in measure.MEASUREMENTS]
    if unknown:
        known = ",".join(measure.MEASUREMENTS)
        raise argparse.ArgumentTypeError(f"unknown measurement {unknown[0]!r}; there are {known}")
    return chosen


def effort(options: argparse.Namespace) -> measure.Effort:
    """Return how long to measure."""
    chosen = measure.QUICK if options.quick else measure.Effort()
    return chosen if options.calls is None else dataclasses.replace(chosen, calls=options.calls)


def machine() -> dict[str, Any]:
    """Return what the absolute figures depend on."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def run(options: argparse.Namespace) -> int:
    """Measure and report; return the exit code: 0, or 1 if a measurement failed or a call got a wrong answer."""
    facts = machine()
    started = time.monotonic()
    rows: list[report.Row] = []
    raw: dict[str, Any] = {}
    errors: list[str] = []
    chosen = effort(options)
    makers: list[Maker] = [ours(options), Envoy(envoy.find_envoy())]
    with tempfile.TemporaryDirectory(prefix="tieline-bench-") as folder:
        house = House(Path(folder))
        try:
            house.start_app()
            bench = measure.Bench(house, makers, chosen, _say, errors)
            for name in options.only:
                try:
                    measured = measure.MEASUREMENTS[name](bench)
                except BenchError as error:
                    # What the others found is still worth having.
                    errors.append(f"{name}: {error}")
                    continue
                rows += measured.rows
                raw[name] = measured.raw
        finally:
            house.close()
    seconds = time.monotonic() - started
    print(report.render_table(rows))
    print(
        f"\n{seconds:.0f} s on {facts['cpus']} CPUs, Python {facts['python']}, load {facts['load_average_before']:.1f}"
    )
    for problem in errors:
        print(f"VOID: {problem}")
    if options.json is not None:
        everything = {
            "machine": facts,
            "effort": dataclasses.asdict(chosen),
            "seconds": seconds,
            "rows": report.to_json(rows),
            "raw": raw,
            "errors": errors,
        }
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    return 1 if errors else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run with the process's own arguments; no traceback for what a user can put right."""
    try:
        return run(parse_arguments(sys.argv[1:]))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
