"""``tieline list``: which sidecars run on this machine, and how they are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from tieline.cli.api import BadToken, token_of
from tieline.cli.roster import DEFAULT_NAMESPACE, Member, Status, members
from tieline.cli.table import Column, age, clean, created, render, terminal_width
from tieline.errors import StartError
from tieline.names.registry import find_registry
from tieline.names.sidecars import sweep_file

MAX_COMMAND: Final = 20
"""Letters of a command in the table."""
NOTHING: Final = "No Dapr instances found."


@click.command("list", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output", "-o", type=click.Choice(["table", "json", "yaml"]), default="table", help="Form; table if not given."
)
def command(output: str) -> int:
    """List the sidecars of this machine, and how they are.

    Dead ones are shown for five minutes after they were first noticed, until a boot, or until they are stopped by name.

    Also those that wait for their app, that were killed, and daprd processes that share the local registry. Each
    living one is asked for its health. On a narrow terminal columns are left out; -o json has everything.
    """
    try:
        token_of(os.environ)
        found = members(os.environ)
    except BadToken as error:
        raise click.ClickException(str(error)) from error
    except StartError as error:
        raise click.ClickException(f'{error}. "tieline doctor" looks closer.') from error
    now = time.time()
    if any(member.status is Status.DEAD for member in found):
        # So that they are gone some minutes after somebody has seen them here.
        sweep_file(find_registry(os.environ))
    if output == "json":
        click.echo(json.dumps([_document(member, now) for member in found], indent=2, ensure_ascii=False))
    elif output == "yaml":
        import yaml

        documents = [_document(member, now) for member in found]
        click.echo(yaml.safe_dump(documents, sort_keys=False, allow_unicode=True), nl=False)
    elif found:
        click.echo("\n".join(_table(found, now)))
    else:
        click.echo(NOTHING)
        click.echo(
            f"None has left word in {find_registry(os.environ)}. Start one: "
            "tieline run --app-id orders --app-port 5001 -- <command>",
            err=True,
        )
    return 0


def _table(found: Sequence[Member], now: float) -> list[str]:
    lines = render(_columns(found, now), terminal_width())
    if "WHY" in lines[0]:
        return lines
    # No room beside the rest, but it is what one wants to know.
    return lines + [f"{clean(member.name)}: {why}" for member in found if (why := _why(member))]


def _columns(found: Sequence[Member], now: float) -> list[Column]:
    def port(number: int) -> str:
        return str(number) if number else ""

    every = [member.facts for member in found]
    spaces = [facts.namespace for facts in every]
    usual = all(space in ("", DEFAULT_NAMESPACE) for space in spaces)
    return [
        Column("APP ID", [clean(facts.app_id) for facts in every]),
        Column("HTTP PORT", ["socket" if facts.http_socket else port(facts.http_port) for facts in every]),
        Column("GRPC PORT", [port(facts.grpc_port) for facts in every], 4),
        Column("APP PORT", [str(facts.app_port) if facts.pid else "" for facts in every], 1),
        Column("STATUS", [member.status.value for member in found]),
        Column("NAMESPACE", ["" if usual else clean(space) for space in spaces], 1),
        Column("COMMAND", [_cut(clean(member.command)) for member in found], 3),
        Column("AGE", [age(now - facts.started) if facts.started else "" for facts in every], 1),
        Column("CREATED", [created(facts.started) if facts.started else "" for facts in every], 6),
        Column("DAPRD PID", [port(facts.pid) for facts in every], 2),
        Column("CLI PID", [port(member.cli_pid) for member in found], 5),
        Column("APP PID", [port(member.app_pid) for member in found], 5),
        Column("RUN TEMPLATE PATH", [_extended(member, "runTemplatePath") for member in found], 7),
        Column("APP LOG PATH", [_extended(member, "appLogPath") for member in found], 7),
        Column("DAPRD LOG PATH", [_extended(member, "daprdLogPath") for member in found], 7),
        Column("WHY", [_why(member) for member in found], 8),
    ]


def _why(member: Member) -> str:
    return clean(member.detail) if member.status is not Status.ANNOUNCED else ""


def _cut(text: str) -> str:
    return text if len(text) <= MAX_COMMAND else text[: MAX_COMMAND - 3] + "..."


def _extended(member: Member, key: str) -> str:
    return clean((member.extended or {}).get(key, ""))


def _document(member: Member, now: float) -> dict[str, Any]:
    """Return a member as JSON has it: first the keys that ``dapr list`` has too, then our own (docs/cli.md)."""
    facts = member.facts
    extended = member.extended or {}
    return {
        "appId": facts.app_id,
        "httpPort": facts.http_port,
        "grpcPort": facts.grpc_port,
        "appPort": facts.app_port,
        "metricsEnabled": facts.metrics_enabled,
        "command": member.command,
        "age": age(now - facts.started) if facts.started else "",
        "created": created(facts.started) if facts.started else "",
        "daprdPid": facts.pid,
        "cliPid": member.cli_pid,
        "appPid": member.app_pid,
        "maxRequestBodySize": facts.max_body_size,
        "httpReadBufferSize": facts.read_buffer_size,
        "runTemplatePath": extended.get("runTemplatePath", ""),
        "appLogPath": extended.get("appLogPath", ""),
        "daprdLogPath": extended.get("daprdLogPath", ""),
        "runTemplateName": extended.get("runTemplateName", ""),
        "namespace": facts.namespace,
        "status": member.status.value,
        "detail": member.detail,
        "appState": member.app_state,
        "httpHost": facts.http_host,
        "httpSocket": facts.http_socket,
        "metricsPort": facts.metrics_port,
        "internalAddress": facts.internal_address,
        "appProtocol": facts.app_protocol,
        "appAddress": facts.app_address,
        "announced": member.announced,
        "heartbeatAgeSeconds": None if member.heartbeat_age_s is None else round(max(0.0, member.heartbeat_age_s), 1),
        "startedAt": round(facts.started, 3),
        "resolver": facts.resolver,
        "needsToken": facts.needs_token,
        "version": facts.version,
        "kind": "tieline" if member.is_ours else "other",
    }
