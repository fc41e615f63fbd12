"""Entry point of the command ``tieline``.

``tieline sidecar`` is what a container or ``tieline run`` starts, once for each app: it must be small and quick, so
it is taken aside here before anything else is imported. All other commands are for people and may import more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tieline.cli import INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 2 for arguments that make no sense.

    Args:
        argv: Arguments without the program's name; those of the process if ``None``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # before a command has taken the signal over
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:  # as people type it: help on everything, or on one command
        arguments = [*arguments[1:2], "--help"]
    if arguments[:1] == ["sidecar"]:
        from tieline.cli import sidecar

        return sidecar.main(arguments[1:])
    from tieline.cli import commands

    return commands.main(arguments)
