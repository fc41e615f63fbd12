"""``tieline version``: the versions of the command and of the sidecar, which are one."""

from __future__ import annotations

import json

import click

from tieline import __version__


@click.command("version", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help="Form; text if not given.")
def command(output: str) -> int:
    """Print the versions of the command and of the sidecar, as dapr does."""
    if output == "json":
        click.echo(json.dumps({"Cli version": __version__, "Runtime version": __version__}))
    else:
        click.echo(f"CLI version: {__version__}\nRuntime version: {__version__}")
    return 0
