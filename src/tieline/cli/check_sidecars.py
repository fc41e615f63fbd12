"""Checks of ``tieline doctor`` on who runs: each sidecar, its app, and whether a name can be called."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import tieline
from tieline.cli.api import TOKEN_VARIABLE
from tieline.cli.app_reach import TLS_PROTOCOLS, app_address, no_tls, refusal
from tieline.cli.check_host import same_user
from tieline.cli.findings import Finding, fail, ok, warn
from tieline.cli.roster import DEFAULT_NAMESPACE, UNHEALTHY, Member, Status, matching
from tieline.cli.sockets import Listener, command_line, describe, listeners, owners, processes
from tieline.names.file_resolver import parse_address
from tieline.names.registry import find_registry

MAX_NAMES: Final = 20
"""Most names or processes told in one line."""


def check_name(found: Sequence[Member], name: str) -> Iterator[Finding]:
    """Can an app be called by this name?"""
    subject = f"name {name}"
    same = matching(found, name)
    callable_now = [member for member in same if member.announced]
    if callable_now:
        spaces = {member.facts.namespace or DEFAULT_NAMESPACE for member in callable_now}
        places = ", ".join(member.facts.internal_address for member in callable_now[:MAX_NAMES])
        yield ok(subject, f"known in namespace {', '.join(sorted(spaces))}, at {places}")
        return
    if not same:
        yield _unknown(found, name)
        return
    member = same[-1]
    if not member.is_alive:
        why = "every call to it fails"
        yield fail(subject, f"it was here, but {member.detail}", why, "start it again")
    elif not member.uses_registry:
        resolver = member.facts.resolver
        why = "only sidecars with the same configuration find it"
        yield warn(subject, f"it is announced by {resolver} and not here", why, "start them with the same --config")
    else:
        why = "nobody finds it"
        yield fail(subject, f"its sidecar is there, but {member.status.value}", why, "see the lines on it")


def _unknown(found: Sequence[Member], name: str) -> Finding:
    known = list(dict.fromkeys(member.name for member in found if member.announced))
    app_id = name.partition(".")[0]
    ids = list(dict.fromkeys(member.facts.app_id for member in found))
    near = [other for other in ids if other.lower() == app_id.lower() or other == app_id] or difflib.get_close_matches(
        app_id, ids, n=1
    )
    told = f"known are {', '.join(known[:MAX_NAMES])}" if known else "no name is"
    todo = f'did you mean "{near[0]}"? Names are case-sensitive' if near else f"start it: tieline run --app-id {app_id}"
    return fail(f"name {name}", f"it is not known here, {told}", "calls to it fail, unless mDNS finds it", todo)


def check_sidecars(found: Sequence[Member], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Are the sidecars well, and do their apps listen?"""
    if not found:
        yield ok("sidecars", f"none has left word in {find_registry(environ)}")
        return
    known = listeners()
    for member in found:
        if member.is_ours:
            yield from _sidecar(member, known, environ)
        elif member.is_alive:
            yield ok(_of(member), f"no Tieline, announced at {member.facts.internal_address}")


def check_strangers(found: Sequence[Member], app_ids: Collection[str], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Do sidecars of this user run that are not in this registry?

    Args:
        app_ids: Only theirs are told; all if there are none.
    """
    members = {member.facts.pid for member in found}
    ours = find_registry(environ)
    elsewhere: dict[Path, list[str]] = {}
    for pid in processes():
        words = command_line(pid)
        if pid in members or not _is_sidecar(words) or not same_user(pid):
            continue
        app_id = _app_id_of(words)
        if not app_ids or app_id in app_ids:
            elsewhere.setdefault(find_registry(_environment_of(pid)), []).append(f"{app_id or '?'} (process {pid})")
    for theirs, names in elsewhere.items():
        whose = f"sidecars of {', '.join(names[:MAX_NAMES])}{' …' if len(names) > MAX_NAMES else ''}"
        if theirs == ours:
            told, todo = f"{whose} are not in it", "wait if they have just started, else see their logs"
        else:
            told = f"{whose} keep theirs in {theirs}, not in {ours}"
            todo = "start all with the same HOME and XDG_STATE_HOME"
        yield warn("registry", told, "neither commands nor sidecars of this shell find them", todo)


def _is_sidecar(words: Sequence[str]) -> bool:
    names = [Path(word).name for word in words[:6]]
    return any(pair == ("tieline", "sidecar") for pair in pairwise(names))


def _app_id_of(words: Sequence[str]) -> str:
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in ("--app-id", "-app-id"):
            return value
        if word.startswith("--app-id="):
            return word.partition("=")[2]
    return ""


def _environment_of(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/environ").read_bytes()
        pairs = (part.decode("utf-8", "surrogateescape").partition("=") for part in raw.split(b"\0") if part)
        return {name: value for name, _, value in pairs}
    return {}


def _of(member: Member) -> str:
    return f"sidecar of {member.name}"


def _sidecar(member: Member, known: Sequence[Listener], environ: Mapping[str, str]) -> Iterator[Finding]:
    subject = _of(member)
    facts = member.facts
    if member.status is Status.STOPPING:
        yield warn(subject, member.detail, "calls to it fail", "wait a moment, or tieline stop it with --force")
        return
    if not member.is_alive:
        yield warn(subject, f"it ended without a word: {member.detail}", "nobody can call it", "start it again")
        return
    troubles = [*_itself(member, known), *_app(member, known)]
    if facts.needs_token and not environ.get(TOKEN_VARIABLE):
        why = "calls of apps and commands that do not send it get 401"
        troubles.append(warn(subject, f"it asks for a token, and {TOKEN_VARIABLE} is not set here", why, "set it"))
    if facts.version and facts.version != tieline.__version__:
        told = f"it runs Tieline {facts.version}, and this is {tieline.__version__}"
        troubles.append(warn(subject, told, "it may behave otherwise", "restart it"))
    yield from troubles
    if not troubles:
        app = f", app on port {facts.app_port}" if facts.app_port else ", without an app"
        yield ok(subject, f"healthy{app}")


def _itself(member: Member, known: Sequence[Listener]) -> Iterator[Finding]:
    facts, subject = member.facts, _of(member)
    if member.status is Status.SILENT:
        if _is_stopped(facts.pid):
            told, todo = f"process {facts.pid} is suspended", f"kill -CONT {facts.pid}, or let the debugger go on"
        else:
            told, todo = member.detail, f"see its log, or restart it: tieline stop {facts.app_id} --force"
            others = _others_on(facts.http_port, facts.pid, known)
            told += f"; {others} has its port" if others else ""
        yield fail(subject, told, "calls to it and from its app fail", todo)
        return
    if member.status is Status.NOT_READY:
        if any(_app(member, known)):
            yield fail(subject, member.detail, "nobody finds the app", "see the line on its app")
        else:
            told = f"{member.detail}: it is starting or stopping"
            yield fail(subject, told, "nobody finds the app", "wait a moment, or see its log")
    elif not member.announced and member.uses_registry:
        told = "it is healthy, but has no fresh heartbeat in the registry"
        yield fail(subject, told, "callers do not find it", "see the lines on the registry, and its log")
    endpoint = parse_address(facts.internal_address)
    if endpoint is not None and (trouble := refusal(endpoint.host, endpoint.port)):
        told = f"its port for other sidecars, {facts.internal_address}, cannot be reached ({trouble})"
        yield fail(subject, told, "calls of other apps to it fail", "look at the firewall, and restart it")


def _app(member: Member, known: Sequence[Listener]) -> Iterator[Finding]:
    facts = member.facts
    if not facts.app_port:
        return
    subject = f"app of {member.name}"
    if member.app_state == UNHEALTHY:
        told = member.detail.removeprefix("its app is ")
        yield fail(subject, told, f"calls to {facts.app_id} fail", "see the app's own log")
    host, shown = app_address(facts)
    same_port = [listener for listener in known if listener.port == facts.app_port]
    whose = owners(listener.inode for listener in same_port)
    trouble = refusal(host, facts.app_port)
    if not trouble:
        owner = next((whose[listener.inode] for listener in same_port if listener.inode in whose), None)
        if owner is not None and (owner == facts.pid or _is_sidecar(command_line(owner))):
            why = "calls go from sidecar to sidecar and never to an app"
            yield fail(subject, f"{shown} is the port of a sidecar", why, "give the app's own port by --app-port")
        elif facts.app_protocol in TLS_PROTOCOLS and (trouble := no_tls(host, facts.app_port)):
            plain = facts.app_protocol.removesuffix("s")
            told = f"{shown} speaks no TLS ({trouble}), and the sidecar has --app-protocol {facts.app_protocol}"
            todo = f"start the sidecar with --app-protocol {plain}, or let the app speak TLS"
            yield fail(subject, told, f"calls to {facts.app_id} fail", todo)
        return
    why = f"calls to {facts.app_id} fail"
    if same_port:
        listener = same_port[0]
        who = describe(whose.get(listener.inode), listener.uid)
        told = f"{who} listens on {listener.shown}, but the sidecar calls {shown} ({trouble})"
        todo = f"let the app listen on {host}, or start the sidecar with --app-channel-address {listener.host}"
        yield fail(subject, told, why, todo)
        return
    elsewhere = _ports_of_group(member.app_pid, known)
    told = f"nobody listens on {shown} ({trouble})"
    if elsewhere:
        ports = ", ".join(map(str, elsewhere))
        todo = f"its process listens on port {ports}: is --app-port {facts.app_port} right?"
        yield fail(subject, told, why, todo.rstrip("?") + "? If not, restart it with the right one")
    else:
        yield fail(subject, told, why, "start the app, or restart the sidecar with the port that it uses as --app-port")


def _others_on(port: int, pid: int, known: Sequence[Listener]) -> str:
    """Return who else listens on a sidecar's port; empty if nobody does."""
    same = [listener for listener in known if listener.port == port and port]
    whose = owners(listener.inode for listener in same)
    for listener in same:
        if whose.get(listener.inode) != pid:
            return describe(whose.get(listener.inode), listener.uid)
    return ""


def _ports_of_group(leader: int, known: Sequence[Listener]) -> list[int]:
    """Return the ports on which an app listens, whichever of its processes does."""
    if not leader:
        return []
    whose = owners(listener.inode for listener in known)
    ports: set[int] = set()
    for listener in known:
        pid = whose.get(listener.inode)
        with contextlib.suppress(OSError):
            if pid is not None and os.getpgid(pid) == leader:
                ports.add(listener.port)
    return sorted(ports)[:MAX_NAMES]


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False
