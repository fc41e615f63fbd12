"""``tieline stop``: end sidecars gracefully, together with the app and the ``run`` that belong to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

import click

from tieline.cli.api import TOKEN_VARIABLE, BadToken, NotReached, ask, token_of
from tieline.cli.completion import complete_app_ids
from tieline.cli.console import Console
from tieline.cli.numbers import finite
from tieline.cli.parallel import in_parallel
from tieline.cli.processes import NotThere, Process
from tieline.cli.roster import ASK_TIMEOUT_S, Member, Status, matching, meant, members
from tieline.cli.wait import HEALTH_PATH, NO_CONTENT
from tieline.errors import StartError
from tieline.names.registry import find_registry, read_registry
from tieline.names.sidecars import CUT, SidecarFacts, sweep_file

STOP_TIMEOUT_S: Final = 15.0
"""A sidecar drains for 5 s, and ``run`` gives an app as long again."""
AFTER_KILL_S: Final = 2.0
MAX_AT_ONCE: Final = 32


class Outcome(NamedTuple):
    """How it went with one sidecar."""

    stopped: bool
    text: str
    was_cut: bool = False
    """Calls in progress did not finish."""


@click.command("stop", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("app_ids", nargs=-1, metavar="[APP-ID]...", shell_complete=complete_app_ids)
@click.option("--app-id", "-a", "more_ids", multiple=True, metavar="ID", help="The same as an argument.")
@click.option("--all", "everybody", is_flag=True, help="All sidecars of this user.")
@click.option("--pid", type=int, multiple=True, metavar="PID", help="The sidecar with this process id.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600),
    callback=finite,
    default=STOP_TIMEOUT_S,
    metavar="SECONDS",
    help=f"How long they may take; {STOP_TIMEOUT_S:g} if not given.",
)
@click.option("--force", is_flag=True, help="Then kill those that still run.")
@click.option("--log-as-json", is_flag=True, help="Status lines as JSON.")
def command(
    app_ids: Sequence[str],
    more_ids: Sequence[str],
    everybody: bool,
    pid: Sequence[int],
    timeout: float,
    force: bool,
    log_as_json: bool,
) -> int:
    """Stop sidecars gracefully: calls in progress finish, within the 5 s that a sidecar gives them.

    It gives them more, or less, if it was started with --dapr-graceful-shutdown-seconds; calls that were cut are told.
    An app beside it is asked to stop after that, and killed by its run 6 s later if it does not; --force kills both as
    soon as --timeout is over.

    One that "tieline run" started is stopped with its app. An app ID that several sidecars have means all of
    them, in any namespace; <app-id>.<namespace> is exact. Exit code 1 if one could not be found or still runs.

    \b
      tieline stop orders
      tieline stop --all --timeout 2 --force
    """
    names = [*app_ids, *more_ids]
    if not names and not pid and not everybody:
        raise click.UsageError('which one? Give an app ID, --pid or --all; "tieline list" shows what runs.')
    if everybody and (names or pid):
        raise click.UsageError("--all means every sidecar: give no app ID or --pid beside it.")
    console = Console(as_json=log_as_json)
    try:
        token = token_of(os.environ)
        found = members(os.environ)
    except BadToken as error:
        console.fail(str(error))
        return 1
    except StartError as error:
        console.fail(f'{error}. "tieline doctor" looks closer.')
        return 1
    chosen, missing = _choose(found, names, pid, everybody)
    for text in missing:
        console.fail(text)
    if everybody and not chosen:
        console.info("Nothing to stop: no sidecar runs.")
    if not chosen:
        return 1 if missing else 0
    until = time.monotonic() + timeout
    outcomes = in_parallel(lambda member: _stop(member, until, force, token), chosen, MAX_AT_ONCE)
    for outcome in outcomes:
        tell = console.warn if outcome.was_cut else console.success if outcome.stopped else console.fail
        tell(outcome.text)
    return 1 if missing or not all(outcome.stopped for outcome in outcomes) else 0


def _choose(
    found: Sequence[Member], names: Sequence[str], pids: Sequence[int], everybody: bool
) -> tuple[list[Member], list[str]]:
    """Return whom to stop, each once, and a text for each name that means nobody."""
    if everybody:
        return [member for member in found if member.is_alive and member.is_ours], []
    chosen: list[Member] = []
    missing: list[str] = []
    for name in dict.fromkeys(names):
        same = matching(found, name)
        living = [member for member in same if member.is_alive]
        chosen += [member for member in living if member not in chosen]
        if not same:
            question = meant([member for member in found if member.is_alive], name)
            told = f"{_known(found)}. {question}" if question else _known(found)
            missing.append(f"failed to stop app id {name}: couldn't find app id {name}{told}")
        elif not living:
            sweep_file(find_registry(os.environ), forgotten=[member.facts for member in same if member.is_ours])
            told = f"it does not run any more ({same[-1].detail}), and is off the list now"
            missing.append(f"failed to stop app id {name}: {told}")
    for pid in dict.fromkeys(pids):
        same = [member for member in found if member.facts.pid == pid and member.is_alive]
        chosen += [member for member in same if member not in chosen]
        if not same:
            missing.append(f"failed to stop process {pid}: it is no sidecar of this user")
    return chosen, missing


def _known(found: Sequence[Member]) -> str:
    names = list(dict.fromkeys(member.name for member in found if member.is_alive))
    return f"; running: {', '.join(names[:20])}" if names else "; no sidecar runs"


def _stop(member: Member, until: float, force: bool, token: str) -> Outcome:
    name = member.facts.app_id
    failed = f"failed to stop app id {name}: "
    if not member.is_ours:
        return Outcome(False, f"{failed}it is no Tieline and does not tell its process; stop it where it was started")
    try:
        if member.facts.is_elsewhere() or not member.facts.process_start:
            return _stop_by_api(member, until, token)
        return _stop_process(member, until, force)
    except PermissionError:
        return Outcome(False, f"{failed}process {member.facts.pid} belongs to another user")


def _stop_process(member: Member, until: float, force: bool) -> Outcome:
    facts = member.facts
    processes = _held(member)
    try:
        if not processes:
            return _done(facts)
        # The run passes it on to the sidecar, and then to the app. It goes when both have gone. A second signal would
        # have it kill them, so one that is stopping already is only waited for.
        if member.status is not Status.STOPPING:
            processes[0].signal(signal.SIGTERM)
        # All are asked, not only the first that is late.
        late = [process for process in processes if not process.wait(until)]
        if not late:
            return _done(facts)
        numbers = ", ".join(str(process.pid) for process in late)
        if not force:
            return Outcome(
                False,
                f"failed to stop app id {facts.app_id}: process {numbers} still runs; "
                "give it more time with --timeout, or kill it with --force",
            )
        if member.cli_pid and late[0].pid == member.cli_pid:
            late[0].signal(signal.SIGTERM)  # the second one: it kills its app, and all that this has started
            late = [process for process in late if not process.wait(time.monotonic() + AFTER_KILL_S)]
        # The sidecar first: a run whose sidecar ends looks after its app itself.
        for process in reversed(late):
            process.signal(signal.SIGKILL)
        if all(process.wait(time.monotonic() + AFTER_KILL_S) for process in late):
            return Outcome(True, f"app killed: {facts.app_id} (process {numbers})")
        return Outcome(False, f"failed to stop app id {facts.app_id}: process {numbers} survives being killed")
    finally:
        for process in processes:
            process.close()


def _done(facts: SidecarFacts) -> Outcome:
    """Say that one has stopped, and whether calls were cut for it: that it left word of."""
    text = f"app stopped successfully: {facts.app_id}"
    try:
        left = read_registry(find_registry(os.environ)).sidecars
    except StartError:
        return Outcome(True, text)
    if any(other.process == facts.process and other.end == CUT for other in left):
        told = "calls in progress were cut, as they outlasted its --dapr-graceful-shutdown-seconds (5 if not given)"
        return Outcome(True, f"app stopped: {facts.app_id}; {told}", was_cut=True)
    return Outcome(True, text)


def _held(member: Member) -> list[Process]:
    """Return the processes to stop that still run: the ``run`` first, if there is one, then the sidecar."""
    held: list[Process] = []
    for pid, start in ((member.cli_pid, 0), (member.facts.pid, member.facts.process_start)):
        if not pid:
            continue
        try:
            held.append(Process(pid, start))
        except NotThere:
            continue
    return held


def _stop_by_api(member: Member, until: float, token: str) -> Outcome:
    """Stop a sidecar whose process cannot be told from here, by its own API."""
    failed = f"failed to stop app id {member.facts.app_id}: "
    address = member.address
    if address is None or not _is_it(member):
        return Outcome(False, f"{failed}its process cannot be told from here, and its API does not answer as it")
    try:
        answer = ask(address, "POST", "/v1.0/shutdown", timeout_s=ASK_TIMEOUT_S, token=token)
    except NotReached as error:
        return Outcome(False, failed + str(error))
    if answer.status == 401:
        return Outcome(False, f"{failed}its API asks for a token; set {TOKEN_VARIABLE}")
    if answer.status >= 300:
        return Outcome(False, f"{failed}its API answered {answer.status}")
    while _answers(member):
        if time.monotonic() > until:
            return Outcome(False, f"{failed}its API still answers; give it more time with --timeout")
        time.sleep(0.1)
    return Outcome(True, f"app stopped successfully: {member.facts.app_id}")


def _is_it(member: Member) -> bool:
    """Whether what answers at a sidecar's address is that sidecar."""
    if member.address is None:
        return False
    path = f"{HEALTH_PATH}?appid={quote(member.facts.app_id, safe='')}"
    try:
        return ask(member.address, "GET", path, timeout_s=ASK_TIMEOUT_S).status == NO_CONTENT
    except NotReached:
        return False


def _answers(member: Member) -> bool:
    if member.address is None:
        return False
    try:
        ask(member.address, "GET", HEALTH_PATH, timeout_s=ASK_TIMEOUT_S)
    except NotReached:
        return False
    return True
