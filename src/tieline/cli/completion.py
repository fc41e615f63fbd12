"""``tieline completion``: scripts that let a shell complete commands, flags and the app IDs that run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Final, get_args

import click
from click.shell_completion import CompletionItem, get_completion_class

from tieline.cli.roster import members
from tieline.config.settings import AppProtocol, InitEndpoint, LogLevel
from tieline.errors import StartError

SHELLS: Final = ("bash", "zsh", "fish")
COMPLETE_VARIABLE: Final = "_TIELINE_COMPLETE"
"""By which a shell asks for completions; click derives it from the program's name."""
VERBS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
MAX_PROGRAMS: Final = 1000
"""Most programs offered for one word."""


@click.command("completion", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> int:
    """Print a script by which a shell completes commands, flags and app IDs.

    \b
      bash:  source <(tieline completion bash)                    in ~/.bashrc
      zsh:   source <(tieline completion zsh)                     in ~/.zshrc
      fish:  tieline completion fish | source                     in config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(click.Group("tieline"), {}, "tieline", COMPLETE_VARIABLE)
    # Not source(): for bash that starts one, to look at its version.
    click.echo(complete.source_template % complete.source_vars())
    return 0


class _Program(click.Path):
    """A command to run: programs of ``PATH`` first, then files."""

    name = "program"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what the next word may be."""
        if ctx.params.get("command") or "/" in incomplete:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in _programs(incomplete)]


def _programs(start: str) -> list[str]:
    found: set[str] = set()
    for folder in os.get_exec_path():
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            found.update(entry.name for entry in entries if entry.name.startswith(start) and os.access(entry, os.X_OK))
    return sorted(found)[:MAX_PROGRAMS]


_FILE: Final = click.Path()
_FOLDER: Final = click.Path(file_okay=False)
_VALUES: Final[Mapping[str, click.ParamType[Any]]] = {
    "config": _FILE,
    "data_file": _FILE,
    "log_file": _FILE,
    "paths": _FILE,
    "resources_path": _FOLDER,
    "components_path": _FOLDER,
    "unix_domain_socket": _FOLDER,
    "app_protocol": click.Choice(get_args(AppProtocol)),
    "log_level": click.Choice(get_args(LogLevel)),
    "disable_init_endpoints": click.Choice(get_args(InitEndpoint)),
    "mode": click.Choice(["standalone"]),
    "verb": click.Choice(VERBS, case_sensitive=False),
    "command": _Program(),
}


def know_values(command: click.Command) -> None:
    """Let the parameters of a command be completed by what they take; the command cannot be run after that."""
    for parameter in command.params:
        if parameter.name in _VALUES and not (isinstance(parameter, click.Option) and parameter.is_flag):
            parameter.type = _VALUES[parameter.name]


def complete_app_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the app IDs that run, for a shell; none if the registry cannot be read."""
    try:
        found = members(os.environ, ask_them=False)
    except StartError:
        return []
    names = dict.fromkeys(member.facts.app_id for member in found if member.is_alive)
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
