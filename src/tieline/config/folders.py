"""Lists folders of resource files and reads the files, within bounds and without ever waiting for one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

MAX_FILES: Final = 1000
"""Most entries of a folder that are looked at, in name order."""
MAX_LOOKS: Final = 50
"""Most files that are looked at in one go."""
MAX_ENTRIES: Final = 10_000
"""Most entries of a folder that are even listed; which ones is the file system's choice then."""
MAX_FILE_BYTES: Final = 10 << 20
"""Longest resource file, and longest file of a secret store."""
SUFFIXES: Final = (".yaml", ".yml")

Print: TypeAlias = tuple[int, int, int, int, int]
"""What changes when a file does: device, inode, length, and the times of its content and of its inode."""


class Listing(NamedTuple):
    """What lies directly in a folder.

    Attributes:
        files: Names of the YAML files, sorted.
        others: Names of files that are not YAML, sorted.
        left_out: Entries beyond ``MAX_FILES``.
    """

    files: tuple[str, ...]
    others: tuple[str, ...]
    left_out: int


class Unreadable(Exception):
    """A file cannot be read, or is longer than allowed. The text says why, without the file's name."""


def list_folder(folder: str) -> Listing:
    """Return the files of a folder in name order; folders in it are left out, links are followed (C-50).

    Raises:
        OSError: It is not there, or not a folder.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in islice(entries, MAX_ENTRIES) if not entry.is_dir())
    kept = names[:MAX_FILES]
    return Listing(
        files=tuple(name for name in kept if is_yaml(name)),
        others=tuple(name for name in kept if not is_yaml(name)),
        left_out=len(names) - len(kept),
    )


def is_yaml(name: str) -> bool:
    """Say whether a file counts as YAML, by its name."""
    return name.lower().endswith(SUFFIXES)


def read_bounded(path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return what a regular file holds. A pipe or a device is refused rather than waited for.

    Raises:
        Unreadable: See there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    except ValueError as error:  # a NUL in the path
        raise Unreadable("invalid argument") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise Unreadable(f"it is longer than {max_bytes} bytes")
    return data


def fingerprint(folders: Sequence[str], files: Sequence[str] = ()) -> dict[str, Print | None]:
    """Return what would differ had a file of the folders, or one of the other files, changed since.

    Links are followed, so that the swap of a folder behind them shows. What is not there, or not YAML, has ``None``.
    """
    found: dict[str, Print | None] = {}
    for part in fingerprint_in_parts(folders, files):
        found |= part
    return found


def fingerprint_in_parts(folders: Sequence[str], files: Sequence[str] = ()) -> Iterator[dict[str, Print | None]]:
    """Return the same, no more than ``MAX_LOOKS`` files at a time: where looking is slow, others have a turn."""
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in islice(entries, MAX_ENTRIES))[:MAX_FILES]
        except OSError:
            yield {folder: None}
            continue
        for first in range(0, len(names), MAX_LOOKS):
            # Once a second for each file, so by os.path: it takes a tenth of what Path does.
            paths = {os.path.join(folder, name): is_yaml(name) for name in names[first : first + MAX_LOOKS]}  # noqa: PTH118
            yield {path: _print(path) if looked_at else None for path, looked_at in paths.items()}
    yield {file: _print(file) for file in files}


def _print(path: str) -> Print | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - as above
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
