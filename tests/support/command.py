"""Runs ``tieline`` commands as processes of their own, as a user does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WITHIN_S = 30.0
_ROOT = Path(__file__).parents[2]


class Result(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str
    raw: bytes

    def json(self) -> Any:
        """Return its output as JSON."""
        return json.loads(self.out)


async def start(
    environ: Mapping[str, str], *argv: str, stdin: int = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    """Start a command with pipes for what it writes."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tieline",
        *argv,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
        cwd=_ROOT,
    )


async def run(environ: Mapping[str, str], *argv: str, stdin: bytes | None = None) -> Result:
    """Run a command to its end."""
    process = await start(
        environ, *argv, stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            out, err = await process.communicate(stdin)
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Result(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), out)


async def on_terminal(environ: Mapping[str, str], columns: int, argv: Sequence[str]) -> str:
    """Run a command on a terminal of that width and return all that it showed."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tieline", *argv, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(environ), cwd=_ROOT
    )
    os.close(theirs)
    shown = b""
    loop = asyncio.get_running_loop()
    while True:
        try:
            piece = await loop.run_in_executor(None, os.read, ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    await process.wait()
    return shown.decode("utf-8", "replace").replace("\r\n", "\n")
