"""Who runs on this machine: what the local registry says, held against the kernel and each sidecar's own answer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Final

from tieline.cli.api import BadToken, NotReached, ask, token_of
from tieline.cli.app_reach import app_trouble
from tieline.cli.parallel import in_parallel
from tieline.cli.sockets import command_line
from tieline.cli.wait import HEALTH_PATH, NO_CONTENT, Address
from tieline.config.spelling import closest
from tieline.names.registry import Content, Instance, find_registry, read_registry
from tieline.names.sidecars import CUT, STOPPED, SidecarFacts, parent_of, process_start

ASK_TIMEOUT_S: Final = 1.0
"""How long a sidecar may take for one answer about itself."""
MAX_ASKED_AT_ONCE: Final = 32
DEFAULT_NAMESPACE: Final = "default"
CLOCK_SLACK_S: Final = 120.0
"""How much earlier than it says a sidecar's process may have started: its import and checks, on a busy machine."""


UNHEALTHY: Final = "unhealthy"
"""State of an app that fails its health checks."""


class Status(StrEnum):
    """How a sidecar is."""

    HEALTHY = "healthy"
    NOT_READY = "not ready"
    SILENT = "no answer"
    """Its process lives, but its API does not answer."""
    ANNOUNCED = "announced"
    """Not one of ours: there is nothing but its heartbeat to go by."""
    STOPPING = "stopping"
    """It has ended, and the ``run`` that started it is still about to stop the app."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One sidecar, as far as it is known.

    Attributes:
        facts: What it left word of; of a ``daprd``, app ID, namespace and internal address only.
        detail: Why it is not healthy, in a few words.
        announced: Whether callers find it by the registry.
        heartbeat_age_s: Seconds since its last heartbeat, less than 0 if a clock is wrong; ``None`` if there was none.
        cli_pid: Of the ``run`` that started it; 0 if none did.
        app_pid: Of the app; this and the next as its metadata tells, 0 or empty if it does not.
        app_state: Of its app, by health checks: healthy, unhealthy, waiting or unknown; empty if it does not say.
        command: That the app was started with.
    """

    facts: SidecarFacts
    status: Status
    detail: str = ""
    announced: bool = False
    heartbeat_age_s: float | None = None
    cli_pid: int = 0
    app_pid: int = 0
    app_state: str = ""
    command: str = ""
    extended: Mapping[str, str] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is a Tieline, and not a ``daprd`` that shares the registry."""
        return self.facts.pid > 0

    @property
    def uses_registry(self) -> bool:
        """Whether it announces its app in the local registry."""
        return self.facts.resolver.lower() in ("", "registry")

    @property
    def is_alive(self) -> bool:
        """Whether it may answer."""
        return self.status is not Status.DEAD

    @property
    def is_serving(self) -> bool:
        """Whether its APIs may answer."""
        return self.status not in (Status.DEAD, Status.STOPPING)

    @property
    def name(self) -> str:
        """App ID, with the namespace where that is not the usual one."""
        space = self.facts.namespace
        return self.facts.app_id if space in ("", DEFAULT_NAMESPACE) else f"{self.facts.app_id}.{space}"

    @property
    def address(self) -> Address | None:
        """Where its HTTP API is, if that is known."""
        return api_address(self.facts)


def api_address(facts: SidecarFacts) -> Address | None:
    """Return where a sidecar's HTTP API is, if that is known."""
    if facts.http_socket:
        return facts.http_socket
    return (facts.http_host or "127.0.0.1", facts.http_port) if facts.http_port else None


def rpc_address(facts: SidecarFacts) -> Address | None:
    """Return where a sidecar's gRPC API is, if that is known."""
    if facts.http_socket:
        # The two stand side by side, under names that differ in this.
        folder, slash, name = facts.http_socket.rpartition("/")
        return f"{folder}{slash}{name.removesuffix('-http.socket')}-grpc.socket"
    return (facts.http_host or "127.0.0.1", facts.grpc_port) if facts.grpc_port else None


def members(environ: Mapping[str, str], *, ask_them: bool = True) -> list[Member]:
    """Return all sidecars of this user on this machine, by app ID and age. Takes some seconds at most.

    Args:
        environ: Says where the registry is, and holds the token to ask with.
        ask_them: Ask each living one how it is; else those whose process lives count as healthy.

    Raises:
        StartError: The registry cannot be read.
    """
    return members_in(read_registry(find_registry(environ)), environ, ask_them=ask_them)


def members_in(content: Content, environ: Mapping[str, str], *, ask_them: bool = True) -> list[Member]:
    """Return the sidecars in a registry that was read; see ``members``."""
    found = _unasked(content, time.time())
    if ask_them:
        try:
            token = token_of(environ)
        except BadToken:
            token = ""  # whoever asks for it says so itself
        found = in_parallel(lambda member: _asked(member, token), found, MAX_ASKED_AT_ONCE)
    return sorted(found, key=lambda member: (member.facts.app_id, member.facts.namespace, member.facts.started))


def meant(everyone: Sequence[Member], name: str) -> str:
    """Return a question about the name here that is most like one that is not; empty if none is like it."""
    app_id = name.partition(".")[0]
    names = {member.facts.app_id: member.name for member in reversed(everyone)}
    guess = closest(app_id, names) if app_id not in names else ""
    if not guess:
        return ""
    rule = " Names are case-sensitive." if guess.lower() == app_id.lower() else ""
    return f'Did you mean "{names[guess]}"?{rule}'


def matching(everyone: Sequence[Member], name: str) -> list[Member]:
    """Return the sidecars of an app, ``<app-id>`` in any namespace or ``<app-id>.<namespace>``."""
    app_id, dot, namespace = name.partition(".")
    return [
        member
        for member in everyone
        if member.facts.app_id == app_id and (not dot or member.facts.namespace in ("", namespace))
    ]


def _unasked(content: Content, now: float) -> list[Member]:
    left = {instance.registration_id: instance for instance in content.instances}
    found: list[Member] = []
    for facts in content.sidecars:
        own = next((instance for instance in left.values() if _are_same(facts, instance)), None)
        if own is not None:
            del left[own.registration_id]
        member = _member(facts, own, now)
        has_ended = member.status is Status.DEAD or facts.end
        if has_ended and facts.parent_lives() and _is_run(facts.parent):
            told = f"its sidecar has ended, and process {facts.parent} stops its app"
            member = replace(member, status=Status.STOPPING, detail=told, cli_pid=facts.parent)
        elif facts.end in (CUT, STOPPED) or (member.status is Status.DEAD and facts.is_of_the_past(now)):
            continue
        found.append(member)
    found.extend(_member(_facts_of(instance), instance, now) for instance in left.values())
    return found


def _are_same(facts: SidecarFacts, instance: Instance) -> bool:
    return instance.pid == facts.pid and abs(instance.started - facts.started) < 1


def _facts_of(instance: Instance) -> SidecarFacts:
    """Return what is known of a sidecar that left no word for tools: an older one of ours, or a ``daprd``."""
    return SidecarFacts(
        app_id=instance.app_id,
        namespace=instance.namespace,
        pid=instance.pid,
        started=instance.started,
        version=instance.version,
        http_host="127.0.0.1" if instance.http_port else "",
        http_port=instance.http_port,
        grpc_port=instance.grpc_port,
        internal_address=instance.address,
        app_port=instance.app_port,
    )


def _member(facts: SidecarFacts, instance: Instance | None, now: float) -> Member:
    age = None if instance is None else now - instance.last_update
    fresh = instance is not None and instance.is_fresh(now)
    member = Member(facts=facts, status=Status.HEALTHY, announced=fresh, heartbeat_age_s=age)
    if not member.is_ours:
        if fresh:
            return replace(member, status=Status.ANNOUNCED, detail="not a Tieline: only its heartbeat is known")
        return replace(member, status=Status.DEAD, detail=f"no heartbeat for {int(age or 0)} s")
    # A row that does not say when its process started goes by its heartbeat, and only then by the number.
    known = facts.process_start or not instance
    ended = facts.has_ended() if known else not fresh and not _may_be(facts)
    return replace(member, status=Status.DEAD, detail=f"process {facts.pid} has ended") if ended else member


def _may_be(facts: SidecarFacts) -> bool:
    """Whether a process of that number is the one that wrote a row which does not say when it started."""
    if process_start(facts.pid) is None:
        return False
    try:
        began = Path(f"/proc/{facts.pid}").stat().st_ctime
    except OSError:
        return False
    return facts.started - CLOCK_SLACK_S < began < facts.started + 1


def _asked(member: Member, token: str) -> Member:
    """Ask a sidecar how it is, and what it was started with."""
    address = member.address
    if not member.is_ours or not member.is_serving or address is None:
        return member
    member = replace(member, cli_pid=_run_of(member.facts))
    try:
        health = ask(address, "GET", HEALTH_PATH, timeout_s=ASK_TIMEOUT_S)
    except NotReached as error:
        # It may have ended just now; then that is the news.
        if member.facts.has_ended():
            return replace(member, status=Status.DEAD, detail=f"process {member.facts.pid} has ended")
        return replace(member, status=Status.SILENT, detail=str(error))
    if health.status != NO_CONTENT:
        detail = app_trouble(member.facts) or _reason(health.body)
        member = replace(member, status=Status.NOT_READY, detail=detail)
    state, _, last_probe = health.app.partition("; ")
    member = replace(member, app_state=state)
    if state == UNHEALTHY and not member.detail:
        member = replace(member, detail=f"its app is unhealthy: {last_probe}")
    try:
        # The token goes to a process that is known to be the user's own sidecar, and to no other.
        known = bool(member.facts.process_start) and not member.facts.is_elsewhere()
        answer = ask(address, "GET", "/v1.0/metadata", timeout_s=ASK_TIMEOUT_S, token=token if known else "")
    except NotReached:
        return member
    return _with_metadata(member, answer.body) if answer.status == 200 else member


def _reason(body: bytes) -> str:
    try:
        document = json.loads(body)
        return str(document["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return "its health check fails"


def _with_metadata(member: Member, body: bytes) -> Member:
    try:
        document = json.loads(body)
        extended = {str(key): str(value) for key, value in document["extended"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return member
    if document.get("id") != member.facts.app_id:
        return replace(member, status=Status.SILENT, detail="another sidecar answers at its address")
    return replace(
        member,
        cli_pid=_run_of(member.facts, _number(extended.get("cliPID", ""))),
        app_pid=_number(extended.get("appPID", "")),
        command=extended.get("appCommand", ""),
        extended=extended,
    )


def _run_of(facts: SidecarFacts, claimed: int = 0) -> int:
    """Return the ``run`` that started a sidecar and ends with it: its parent, if that is one; 0 if there is none.

    Args:
        claimed: What metadata says, for where the kernel does not tell.
    """
    parent = 0 if facts.is_elsewhere() else parent_of(facts.pid)
    if not parent:
        return claimed
    return parent if parent == claimed or _is_run(parent) else 0


def _is_run(pid: int) -> bool:
    return ("tieline", "run") in pairwise(Path(word).name for word in command_line(pid)[:6])


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
