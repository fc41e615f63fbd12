"""``tieline completion``: scripts that let a shell complete commands, flags and the app IDs that run."""

from __future__ import annotations

import os
from typing import Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from tieline.cli.commands import COMPLETE_VARIABLE
from tieline.cli.roster import members
from tieline.errors import StartError

SHELLS: Final = ("bash", "zsh", "fish")


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


def complete_app_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the app IDs that run, for a shell; none if the registry cannot be read."""
    try:
        found = members(os.environ, ask_them=False)
    except StartError:
        return []
    names = dict.fromkeys(member.facts.app_id for member in found if member.is_alive)
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
