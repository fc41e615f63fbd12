"""What each sidecar of this user leaves word of, for tools: a table of our own in the local registry.

The tables for name resolution hold who can be called. This one holds who runs: from the moment a sidecar serves its
API, so also while it waits for its app, while it drains, and when its names come from elsewhere. There is no
heartbeat in it. Whether a process lives is the kernel's to say, and its start time tells it from another one
that was given the same number.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tieline.names.hosts_file import FileTrouble

WRITE_PATIENCE_S: Final = 1.0
"""How long a locked registry is waited for when a sidecar starts."""
REMOVE_PATIENCE_S: Final = 0.3
"""The same when it ends: a row that stays tells nobody anything wrong."""
KEEP_DEAD_S: Final = 300.0
"""How long a sidecar that ended without a word is shown, from when that was first noticed; not beyond a boot."""
KEEP_LAST_WORD_S: Final = 60.0
"""How long the last word of one stays in the table: that it was cut off, or that its app is still being stopped."""
LOST: Final = "lost"
CUT: Final = "cut"
STOPPED: Final = "stopped"
"""How a sidecar ended: without a word, with calls in progress, or in good order."""
KEEP_UNSEEN_S: Final = 7 * 86400.0
"""The same for one in another container, which may live unseen."""
MAX_SIDECARS: Final = 1000
"""Most rows that are read."""
MAX_TWINS: Final = 3
"""Most sidecars with the same app ID that are told of."""
MAX_PID: Final = (1 << 31) - 1
MAX_TIME: Final = 1e11
"""In seconds since 1970, some three thousand years."""
MAX_FACTS_BYTES: Final = 65536
"""A longer row was not written by a sidecar."""

_CREATE: Final = "CREATE TABLE IF NOT EXISTS tieline_sidecars (process TEXT NOT NULL PRIMARY KEY, facts TEXT NOT NULL)"

_log: Final = logging.getLogger("tieline.names")


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarFacts:
    """One sidecar process.

    Attributes:
        process_start: Start time of the process in the kernel's ticks since boot; 0 where the system does not tell.
        process_space: The name of the process id's namespace; empty where there is none.
        started: Unix time in seconds.
        http_host: Where this host reaches the HTTP API; empty if by a Unix domain socket.
        http_socket: Path of that socket.
        internal_address: For other sidecars, ``host:port``.
        app_address: Where the sidecar reaches the app.
        resolver: What names are looked up in.
        parent: Process that started it, and ``parent_start`` as above.
        ended: Unix time of its end, or of when that was noticed; 0 while it runs.
        end: How it ended: ``LOST``, ``CUT`` or ``STOPPED``; empty while it runs.
        needs_token: Whether its API asks for a token.
        max_body_size: In bytes, -1 for no limit; ``read_buffer_size`` in bytes too.
    """

    app_id: str = ""
    namespace: str = ""
    pid: int = 0
    process_start: int = 0
    process_space: str = ""
    started: float = 0.0
    version: str = ""
    http_host: str = ""
    http_port: int = 0
    http_socket: str = ""
    grpc_port: int = 0
    internal_address: str = ""
    app_port: int = 0
    app_protocol: str = ""
    app_address: str = ""
    resolver: str = ""
    parent: int = 0
    parent_start: int = 0
    ended: float = 0.0
    end: str = ""
    needs_token: bool = False
    metrics_enabled: bool = False
    metrics_port: int = 0
    max_body_size: int = 0
    read_buffer_size: int = 0

    @property
    def process(self) -> str:
        """What no other process of this host is called by."""
        return f"{self.pid}/{self.process_start}/{self.process_space}"

    def is_elsewhere(self) -> bool:
        """Whether its process cannot be seen from here, being in another container."""
        return self.process_space != process_space()

    def parent_lives(self) -> bool:
        """Whether the process that started it is there, and can be told from another of its number."""
        known = not self.is_elsewhere() and self.parent > 1 and self.parent_start > 0
        return known and process_start(self.parent) == self.parent_start

    def is_of_the_past(self, now: float) -> bool:
        """Whether a sidecar that has ended is nobody's business any more."""
        if self.end in (CUT, STOPPED):
            return now - self.ended > KEEP_LAST_WORD_S
        return 0 < self.started < _booted() or bool(self.ended and now - self.ended > KEEP_DEAD_S)

    def has_ended(self) -> bool:
        """Whether its process is known to be gone."""
        if self.is_elsewhere():
            return False
        if sys.platform == "linux" and self.process_start:
            return process_start(self.pid) != self.process_start
        return not _exists(self.pid)


def process_start(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; ``None`` if there is none, or the system does not tell.

    One that has ended and whose parent has not noticed yet does not count.
    """
    state, _, start = _status_of(pid)
    return None if state in ("", "Z", "X") else start


@cache
def _booted() -> float:
    """Return the Unix time of the last boot; 0 if the system does not tell."""
    try:
        lines = Path("/proc/stat").read_text("ascii").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0


def parent_of(pid: int) -> int:
    """Return a process's parent; 0 if the system does not tell."""
    return _status_of(pid)[1]


def _status_of(pid: int) -> tuple[str, int, int]:
    try:
        # The name, in parentheses, may hold anything; then state, parent … and, as the 20th, the start time.
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return words[0].decode("ascii"), int(words[1]), int(words[19])
    except (OSError, ValueError, IndexError):
        return "", 0, 0


def process_space() -> str:
    """Return the name of the namespace in which this process's ids are unique."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it names no path
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class SidecarEntry:
    """The own row: written once the API is served, removed at the end. Trouble with it is no reason to fail.

    Both block, if the file is locked, as long as told above. They may be called from different threads.

    Args:
        locate: Makes the registry if it is missing, sees that it is safe, and returns its path.
        facts: What is written.
    """

    def __init__(self, locate: Callable[[], str], facts: SidecarFacts) -> None:
        self._locate = locate
        self._facts = facts
        self._turn = threading.Lock()
        self._path = ""
        self._removed = False

    def write(self) -> None:
        """Write the row, unless it was removed already, and delete those of processes that ended long ago."""
        with self._turn:
            if self._removed:
                return
            try:
                self._path = self._locate()
            except (OSError, FileTrouble) as error:
                _log.debug("local registry: no word left for tools: %s", error)
            else:
                self._change(self._put, WRITE_PATIENCE_S)

    def remove(self, *, last_word: str = "") -> None:
        """Delete the row, or leave how it ended; a registry that is gone is not made again for that. Idempotent."""
        with self._turn:
            if self._removed:
                return
            self._removed = True
            if self._path and Path(self._path).exists():
                if last_word:
                    self._facts = replace(self._facts, ended=time.time(), end=last_word)
                self._change(self._leave_word if last_word else self._delete, REMOVE_PATIENCE_S)

    def _change(self, change: Callable[[sqlite3.Connection], None], patience_s: float) -> None:
        try:
            uri = f"file:{quote(self._path)}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=patience_s, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode=WAL")
                change(db)
        except (sqlite3.Error, OSError) as error:
            _log.debug("local registry: no word left for tools: %s", error)

    def _put(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        write_facts(db, self._facts)
        sweep(db, time.time(), spared=self._facts.process)
        own = (self._facts.app_id, self._facts.namespace)
        twins = [
            other
            for other in facts_in(db)
            if other.process != self._facts.process
            and (other.app_id, other.namespace) == own
            and not other.end
            and not other.has_ended()
        ]
        db.execute("COMMIT")
        for twin in twins[:MAX_TWINS]:
            app = f", app port {twin.app_port}" if twin.app_port else ""
            _log.info("app ID %s has another sidecar, process %d%s: calls take turns", twin.app_id, twin.pid, app)

    def _leave_word(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        write_facts(db, self._facts)
        db.execute("COMMIT")

    def _delete(self, db: sqlite3.Connection) -> None:
        db.execute(_CREATE)
        db.execute("DELETE FROM tieline_sidecars WHERE process = ?", (self._facts.process,))


def write_facts(db: sqlite3.Connection, facts: SidecarFacts) -> None:
    """Write a sidecar's row within somebody's transaction; the table is made if it is missing."""
    db.execute(_CREATE)
    text = json.dumps(asdict(facts), ensure_ascii=True)
    db.execute("REPLACE INTO tieline_sidecars (process, facts) VALUES (?, ?)", (facts.process, text))


def sweep(db: sqlite3.Connection, now: float, *, spared: str = "") -> None:
    """Note, within somebody's transaction, who has ended without a word, and delete who did long ago."""
    for facts in facts_in(db):
        if facts.process == spared:
            continue
        if facts.is_elsewhere():
            if now - facts.started > KEEP_UNSEEN_S:
                _delete(db, facts)
        elif facts.has_ended():
            if facts.is_of_the_past(now) and not facts.parent_lives():
                _delete(db, facts)
            elif not facts.ended:
                write_facts(db, replace(facts, ended=now, end=LOST))


def sweep_file(path: Path, *, forgotten: Collection[SidecarFacts] = ()) -> None:
    """Do so in a registry file, for a tool that has looked; also delete those given. Trouble does not matter."""
    try:
        uri = f"file:{quote(str(path))}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=REMOVE_PATIENCE_S, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            sweep(db, time.time())
            for facts in forgotten:
                _delete(db, facts)
            db.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        _log.debug("local registry: not swept: %s", error)


def _delete(db: sqlite3.Connection, facts: SidecarFacts) -> None:
    db.execute("DELETE FROM tieline_sidecars WHERE process = ?", (facts.process,))
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'tieline_instances'").fetchone():
        db.execute(
            "DELETE FROM hosts WHERE registration_id IN"
            " (SELECT registration_id FROM tieline_instances WHERE pid = ? AND abs(started - ?) < 1)",
            (facts.pid, facts.started),
        )
        db.execute("DELETE FROM tieline_instances WHERE pid = ? AND abs(started - ?) < 1", (facts.pid, facts.started))


def facts_in(db: sqlite3.Connection) -> list[SidecarFacts]:
    """Return what sidecars have left word of; ``[]`` without the table. Rows that make no sense are left out."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'tieline_sidecars'").fetchone():
        return []
    sql = "SELECT facts FROM tieline_sidecars WHERE length(facts) <= ? LIMIT ?"
    rows = db.execute(sql, (MAX_FACTS_BYTES, MAX_SIDECARS)).fetchall()
    return [facts for (text,) in rows if (facts := _parsed(text)) is not None]


def is_plausible(name: str, value: Any) -> bool:
    """Whether a fact is one that the system takes: whoever reads it may connect to it, or show it as a date."""
    if name.endswith("_port"):
        return bool(0 <= value < 65536)
    if name == "pid":
        return bool(0 <= value <= MAX_PID)
    return name != "started" or bool(0 <= value <= MAX_TIME)


def _parsed(text: object) -> SidecarFacts | None:
    """Read a row, that of another version too: what it does not have keeps its default."""
    try:
        document = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if not isinstance(document, Mapping):
        return None
    values: dict[str, Any] = {}
    for field in fields(SidecarFacts):
        default = field.default
        value = document.get(field.name)
        if isinstance(default, float) and type(value) is int and is_plausible(field.name, value):
            value = float(value)
        values[field.name] = value if type(value) is type(default) and is_plausible(field.name, value) else default
    facts = SidecarFacts(**values)
    return facts if facts.app_id and facts.pid > 0 else None
