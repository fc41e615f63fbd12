"""Which process listens where on this machine, as the kernel tells in ``/proc``; nothing where it does not."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_LISTENING: Final = "0A"
_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
MAX_PROCESSES: Final = 20_000
"""Most processes whose files are looked at."""
MAX_COMMAND: Final = 60
"""Letters shown of a command line."""


class Listener(NamedTuple):
    """A TCP socket that accepts connections."""

    host: str
    port: int
    inode: int
    uid: int

    @property
    def shown(self) -> str:
        """Address and port as people write them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listeners() -> list[Listener]:
    """Return all sockets that listen."""
    found: list[Listener] = []
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                words = line.split()
                if len(words) > 9 and words[3] == _LISTENING:
                    address, _, port = words[1].rpartition(":")
                    found.append(Listener(_host(address), int(port, 16), int(words[9]), int(words[7])))
    return found


def _host(text: str) -> str:
    """Return an address from the kernel's hexadecimal: words of four bytes, each in the machine's order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return str(ipaddress.ip_address(raw))


def owners(inodes: Iterable[int]) -> dict[int, int]:
    """Return the process that has each socket open, as far as this user may know."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    for pid in processes():
        if len(found) == len(wanted):
            break
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.readlink(descriptor.path))  # noqa: PTH115 - it names no path
                    if inode is not None:
                        found.setdefault(inode, pid)
    return found


def holders(path: Path) -> list[int]:
    """Return the processes that have a file open, as far as this user may know."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    found: list[int] = []
    for pid in processes():
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(descriptor.path)  # noqa: PTH116 - of what it leads to
                    if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                        found.append(pid)
                        break
    return found


def processes() -> list[int]:
    """Return the numbers of all processes, ours last, since it has no socket of interest."""
    try:
        numbers = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    except OSError:
        return []
    return sorted(numbers, key=lambda pid: pid == os.getpid())[:MAX_PROCESSES]


def command_line(pid: int) -> list[str]:
    """Return a process's arguments; ``[]`` if they are not to be known."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in raw.split(b"\0")[:-1]]


def describe(pid: int | None, uid: int | None = None) -> str:
    """Return a process as a sentence names it, e.g. ``python3 orders.py (process 12)``. Arguments may hold secrets."""
    if pid is None:
        return "another program" if uid in (None, os.getuid()) else f"a program of user {uid}"
    words = command_line(pid) or ["a program"]
    shown = [Path(words[0]).name]
    shown += [Path(word).name for word in words[1:2] if not word.startswith("-")]
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(shown))
    return f"{text[:MAX_COMMAND]} (process {pid})"
