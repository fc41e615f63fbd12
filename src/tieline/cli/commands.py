"""The commands for people: a click group that imports a command only when it is used."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import click

from tieline import __version__
from tieline.cli import BROKEN_PIPE, INTERRUPTED, USAGE_ERROR
from tieline.cli.console import NotWritten, ReaderGone
from tieline.cli.table import wrapped


class _Command(NamedTuple):
    module: str
    help_text: str


_COMMANDS: Final[dict[str, _Command]] = {
    "run": _Command("tieline.cli.run", "Start an app with a sidecar beside it."),
    "list": _Command("tieline.cli.listing", "List the sidecars of this machine, and how they are."),
    "invoke": _Command("tieline.cli.invoke", "Call a method of an app through a sidecar."),
    "stop": _Command("tieline.cli.stop", "Stop sidecars gracefully, and the apps beside them."),
    "doctor": _Command("tieline.cli.doctor", "Look for what keeps calls from working here."),
    "validate": _Command("tieline.cli.validate", "Check resource files and Configurations, without a start."),
    "demo": _Command("tieline.cli.demo", "Show a call between two apps, and a call that fails, in a few seconds."),
    "sidecar": _Command("", "Start a sidecar alone; takes the flags of daprd."),
    "version": _Command("tieline.cli.version", "Print the versions."),
    "completion": _Command("tieline.cli.completion", "Print a script that lets your shell complete commands."),
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _COMMANDS.get(cmd_name)
        if found is not None and not found.module and ctx.resilient_parsing:
            return _told_to_shells(_sidecar_flags())  # a shell asks for completions
        if found is None or not found.module:
            return None
        command = importlib.import_module(found.module).command
        assert isinstance(command, click.Command)
        return _told_to_shells(command) if ctx.resilient_parsing else command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table: help must not import every command.
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help_text) for name, command in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if name not in _COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            guess = f'; did you mean "{near[0]}"?' if near else "."
            raise click.UsageError(f'unknown command "{name}"{guess}', ctx)
        resolved = super().resolve_command(ctx, args)
        if resolved[1] is not None:
            _refuse_one_dash(resolved[1], args[1:], ctx)
        return resolved


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog='Help on one command: "tieline <command> --help".',
)
@click.version_option(__version__, "-v", "--version", prog_name="tieline", message="%(prog)s %(version)s")
def group() -> None:
    """Call other apps by name: a service-invocation sidecar that speaks Dapr's API.

    Each app gets a sidecar. It calls POST /v1.0/invoke/<app-id>/method/<method> at its own sidecar; the two
    sidecars find each other and carry the call.

    \b
    Try it:
      tieline demo
      tieline run --app-id orders --app-port 5001 -- python orders.py
    """


def main(argv: Sequence[str]) -> int:
    """Run the group and return the exit code. Wrong arguments give one line on stderr, and 2."""
    for stream in (sys.stdout, sys.stderr):
        # Names may hold what a terminal cannot show: then it shows a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    output = sys.stdout
    try:
        code = group.main(list(argv) or ["--help"], prog_name="tieline", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderGone):
        return _reader_gone()
    except SystemExit as end:
        if sys.stdout is not output:  # click met the closed pipe first, and wrapped it
            return _reader_gone()
        return end.code if isinstance(end.code, int) else 0
    except NotWritten as error:
        click.echo(f"tieline: {error}", err=True)
        return 1
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        what = str(error.filename) if error.filename else "standard output cannot be written"
        click.echo(f"tieline: {what}: {told}", err=True)
        return 1
    except click.UsageError as error:
        # Some of click's errors do not say in which command they happened.
        guess = f"tieline {argv[0]}" if argv[0] in _COMMANDS else "tieline"
        path = error.ctx.command_path if error.ctx is not None else guess
        click.echo(wrapped(f'{path}: {_sentence(error)} See "{path} --help".', sys.stderr), err=True)
        return USAGE_ERROR
    except click.ClickException as error:
        click.echo(f"tieline: {error.format_message()}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _refuse_one_dash(command: click.Command, words: Sequence[str], ctx: click.Context) -> None:
    """Refuse ``-app-id x``, which daprd takes and which here would be ``-a pp-id``, before the first other word."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    takes_none = {name for option in options if option.is_flag for name in option.opts + option.secondary_opts}
    long = {name for option in options for name in option.opts + option.secondary_opts if name.startswith("--")}
    is_value = False
    for word in words:
        if is_value:
            is_value = False
            continue
        if word == "--" or not word.startswith("-"):
            return
        name = word.partition("=")[0]
        if not name.startswith("--") and len(name) > 2 and f"-{name}" in long:
            path = f"{ctx.command_path} {command.name}"
            raise click.UsageError(f'no such flag: {path} {name}; did you mean "-{name}"?', ctx)
        is_value = name == word and word not in takes_none and (word in long or len(word) == 2)


def _told_to_shells(command: click.Command) -> click.Command:
    from tieline.cli.completion import know_values

    know_values(command)
    return command


def _reader_gone() -> int:
    """End in silence after ``tieline list | head -1``: the reader has what it wanted."""
    # Python flushes standard output once more at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE


def _sidecar_flags() -> click.Command:
    """Return a stand-in for ``sidecar``, which has no click command, to complete its flags from."""
    from tieline.config.options import OPTIONS

    flags = [click.Option([f"--{name}"], help=flag.about) for name, flag in OPTIONS.items() if not flag.hidden]
    return click.Command("sidecar", params=list(flags))


def _sentence(error: click.UsageError) -> str:
    text = " ".join(error.format_message().split())
    return text if text.endswith((".", "?", "!")) else text + "."
