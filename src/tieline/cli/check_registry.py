"""Checks of ``tieline doctor`` on the local registry: its folder, its file, and what is in it. They change nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tieline.cli.findings import Finding, fail, ok, warn
from tieline.cli.sockets import describe, holders
from tieline.names.hosts_file import explain
from tieline.names.registry import find_registry

LOCK_PATIENCE_S: Final = 1.0
"""How long a sidecar waits for the registry, too."""
CHECK_PATIENCE_S: Final = 2.0
"""How long the file may be read through for damage."""
LEAST_FREE: Final = 1 << 20
"""Bytes on the disk below which the registry may not grow."""
CLOCK_SLACK_S: Final = 2
_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs"})
_COLUMNS: Final = {"registration_id", "address", "app_id", "namespace", "last_update"}
_NOBODY: Final = "sidecars do not find each other"


def check_registry(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Can sidecars of this user find each other by the registry?"""
    given = environ.get("XDG_STATE_HOME", "")
    if given and not given.startswith("/"):
        why = "it is ignored, as the XDG specification asks for"
        yield warn("registry", f"XDG_STATE_HOME is {given!r}, no absolute path", why, "give an absolute one")
    path = find_registry(environ)
    if not os.path.lexists(path.parent):
        above = next((folder for folder in path.parent.parents if folder.exists()), Path("/"))
        reason = _why_closed(above)
        if reason:
            why = f"the registry cannot be made there, and {_NOBODY}"
            yield fail("registry", f"{above} cannot be written ({reason})", why, "correct it, or set XDG_STATE_HOME")
        else:
            yield ok("registry", f"{path} is not there yet; the first sidecar makes it")
        return
    wrong = [*_folder(path.parent), *_file(path)]
    yield from wrong
    if not any(finding.level == "fail" for finding in wrong):
        yield from _content(path)


def _why_closed(folder: Path) -> str:
    """Say why no folder can be made in a folder; empty if one can. Only trying tells; nothing is left of it."""
    try:
        Path(tempfile.mkdtemp(prefix=".tieline-", dir=folder)).rmdir()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _folder(folder: Path) -> Iterator[Finding]:
    status = folder.lstat()
    todo = "remove it, or set XDG_STATE_HOME to a folder of yours"
    if not stat.S_ISDIR(status.st_mode):
        yield fail("registry", f"{folder} is a link or a file", f"it is not trusted, and {_NOBODY}", todo)
        return
    if status.st_uid != os.getuid():
        what = f"{folder} belongs to user {status.st_uid}, not to you ({os.getuid()})"
        yield fail("registry", what, f"it is not trusted, and {_NOBODY}", todo)
        return
    if status.st_mode & 0o077:
        what = f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
        why = "another user may learn or change where calls go until the next sidecar closes it"
        yield warn("registry", what, why, f"chmod 700 {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        yield fail("registry", f"{folder} cannot be written", _NOBODY, f"chmod 700 {folder}")
    kind = _file_system(folder)
    if kind in _NETWORK:
        why = "SQLite cannot share a file there, and the registry may be damaged"
        yield warn("registry", f"{folder} is on a network ({kind})", why, "set XDG_STATE_HOME to a local disk")
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < LEAST_FREE:
        yield fail("registry", f"the disk of {folder} is full", "sidecars cannot announce themselves", "make room")


def _file(path: Path) -> Iterator[Finding]:
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        yield fail("registry", f"{path} is a link or no file", f"it is not trusted, and {_NOBODY}", "remove it")
    elif status.st_uid != os.getuid():
        what = f"{path} belongs to user {status.st_uid}, not to you ({os.getuid()})"
        yield fail("registry", what, f"it is not trusted, and {_NOBODY}", "remove it")
    elif not os.access(path, os.R_OK | os.W_OK):
        yield fail("registry", f"{path} cannot be written", _NOBODY, f"chmod 600 {path}")
    elif status.st_mode & 0o077:
        what = f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
        yield warn("registry", what, "another user may learn or change where calls go", f"chmod 600 {path}")
    broken = Path(f"{path}.broken")
    if broken.exists():
        why = "something damages it: a full disk, or a program that writes to it"
        yield warn("registry", f"a damaged registry was put aside as {broken}", why, "remove it once you have seen why")


def _content(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield ok("registry", f"{path} is not there yet; the first sidecar makes it")
        return
    began = time.monotonic()
    try:
        uri = f"file:{quote(str(path))}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_PATIENCE_S, isolation_level=None)) as db:
            db.set_progress_handler(lambda: time.monotonic() - began > CHECK_PATIENCE_S, 10_000)
            columns = {row[1] for row in db.execute("PRAGMA table_info(hosts)")}
            found = db.execute("PRAGMA quick_check(1)").fetchone()
            if found and found[0] != "ok":
                raise sqlite3.DatabaseError(str(found[0]))
            if columns and not columns >= _COLUMNS:
                raise sqlite3.DatabaseError(f"its table hosts lacks {', '.join(sorted(_COLUMNS - columns))}")
            future = _from_future(db) if columns else []
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        yield _trouble(path, error)
        return
    yield ok("registry", f"{path} can be read and written")
    if future:
        yield warn(
            "clock",
            f"{', '.join(future)} sent a heartbeat that is in the future",
            "it counts as living long after its end; the clock was set back, or containers disagree on it",
            "set the clock, and restart these sidecars",
        )


def _from_future(db: sqlite3.Connection) -> list[str]:
    sql = "SELECT DISTINCT app_id FROM hosts WHERE last_update > ? ORDER BY app_id LIMIT 10"
    return [str(row[0]) for row in db.execute(sql, (int(time.time()) + CLOCK_SLACK_S,))]


def _trouble(path: Path, error: sqlite3.Error) -> Finding:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        who = ", ".join(describe(pid) for pid in holders(path) if pid != os.getpid())
        what = f"{path} has been locked for {LOCK_PATIENCE_S:g} s"
        todo = f"look at who has it open: {who}" if who else "stop the program that has it open"
        return fail("registry", what, "sidecars can neither announce themselves nor find each other", todo)
    if code == sqlite3.SQLITE_INTERRUPT:
        why = "each look at it is slow"
        return warn("registry", f"{path} is so large that it cannot be checked", why, f"stop all sidecars, rm {path}")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return fail("registry", f"{path}: {explain(error)}", _NOBODY, "look at its mode and its disk")
    todo = f"a running sidecar puts it aside by itself; else rm {path}"
    return fail("registry", f"{path} is damaged ({explain(error)})", _NOBODY, todo)


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on; empty if it is not known."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    real = str(folder.resolve())
    for line in lines:
        words = line.split(" ")
        if len(words) > 2:
            mount = words[1].rstrip("/")
            if len(mount) >= len(best) and (real == mount or real.startswith(mount + "/")):
                best, kind = mount, words[2]
    return kind
