"""``tieline doctor``: looks for what keeps calls from working on this machine."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import click

from tieline.cli.check_host import (
    check_default_ports,
    check_files,
    check_loopback,
    check_python,
    check_variables,
)
from tieline.cli.check_registry import check_registry
from tieline.cli.check_sidecars import check_name, check_sidecars, check_strangers
from tieline.cli.completion import complete_app_ids
from tieline.cli.findings import Finding, Level, fail, line_of, rendered, warn
from tieline.cli.roster import Member, members
from tieline.errors import StartError

CHECK_TIMEOUT_S: Final = 10.0
"""How long a check may take."""

Check = Callable[[], Iterator[Finding]]


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("app_ids", nargs=-1, metavar="[APP-ID]...", shell_complete=complete_app_ids)
@click.option("--config", "-c", multiple=True, metavar="FILE", help="Look at this Configuration, too.")
@click.option("--resources-path", multiple=True, metavar="FOLDER", help="Look at the resources in it, too.")
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help="Form; text if not given.")
def command(app_ids: Sequence[str], config: Sequence[str], resources_path: Sequence[str], output: str) -> int:
    """Look for what keeps calls from working here.

    Looks at Python, variables, the registry, ports, each sidecar and its app, and changes nothing. Given app IDs,
    it tells whether they can be called, and looks at their sidecars only. Each line says what is the case, what
    does not work because of it, and what to do. Exit code 1 if something fails.

    \b
      tieline doctor
      tieline doctor orders
    """
    findings = examine(os.environ, app_ids, config, resources_path)
    failed = sum(finding.level is Level.FAIL for finding in findings)
    if output == "json":
        rows = [finding._asdict() | {"line": line_of(finding)} for finding in findings]
        click.echo(json.dumps({"ok": not failed, "findings": rows}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(rendered(findings)))
    return 1 if failed else 0


def examine(
    environ: Mapping[str, str], app_ids: Sequence[str], configurations: Sequence[str], folders: Sequence[str]
) -> list[Finding]:
    """Make all checks and return what they found, in an order that stays. Takes ``CHECK_TIMEOUT_S`` twice at most."""
    found: list[Member] = []

    def registry() -> Iterator[Finding]:
        trouble = list(check_registry(environ))
        yield from trouble
        try:
            found.extend(members(environ))
        except StartError as error:
            if not any(finding.level is Level.FAIL for finding in trouble):
                yield fail("registry", str(error), "sidecars cannot be listed", "see the lines above")

    first: dict[str, Check] = {
        "python": lambda: check_python(environ),
        "variables": lambda: check_variables(environ),
        "loopback": lambda: check_loopback(environ),
        "registry": registry,
    }
    if configurations or folders:
        app_id = app_ids[0].partition(".")[0] if app_ids else ""
        first["files"] = lambda: check_files(environ, app_id, configurations, folders)
    findings = _made(first)
    everyone = list(found)  # a check that is late must not change it
    named = [member for member in everyone if not app_ids or _is_meant(member, app_ids)]
    second: dict[str, Check] = {f"name {name}": partial(check_name, everyone, name) for name in dict.fromkeys(app_ids)}
    if named or not app_ids:
        second["sidecars"] = lambda: check_sidecars(named, environ)
    second["processes"] = lambda: check_strangers(everyone, {name.partition(".")[0] for name in app_ids}, environ)
    second["ports"] = lambda: check_default_ports(environ, {member.facts.pid for member in everyone})
    return findings + _made(second)


def _is_meant(member: Member, app_ids: Sequence[str]) -> bool:
    return any(member.facts.app_id == name.partition(".")[0] for name in app_ids)


def _made(checks: Mapping[str, Check]) -> list[Finding]:
    """Make checks beside each other. One that hangs, or fails itself, is told and hides no other."""
    answers: queue.SimpleQueue[tuple[str, list[Finding]]] = queue.SimpleQueue()

    def make(name: str, check: Check) -> None:
        found: list[Finding] = []
        try:
            found.extend(check())
        except Exception as error:
            what = f"it could not be checked ({type(error).__name__}: {error})"
            found.append(warn(name, what, "what is wrong with it is not known", "look at it yourself"))
        answers.put((name, found))

    for name, check in checks.items():
        threading.Thread(target=make, args=(name, check), name=name, daemon=True).start()
    until = time.monotonic() + CHECK_TIMEOUT_S
    made: dict[str, list[Finding]] = {}
    while len(made) < len(checks):
        try:
            name, found = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        made[name] = found
    late = f"it could not be checked within {CHECK_TIMEOUT_S:g} s"
    missing = [warn(name, late, "something that it asks hangs", "try again") for name in checks if name not in made]
    return [finding for name in checks for finding in made.get(name, ())] + missing
