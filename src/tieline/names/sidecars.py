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
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tieline.names.hosts_file import FileTrouble

WRITE_PATIENCE_S: Final = 1.0
"""How long a locked registry is waited for when a sidecar starts."""
REMOVE_PATIENCE_S: Final = 0.3
"""The same when it ends: a row that stays tells nobody anything wrong."""
KEEP_DEAD_S: Final = 3600.0
"""How long a sidecar that ended without a word stays in the table, counted from its start."""
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

    def remove(self) -> None:
        """Delete the row; a registry that is gone is not made again for that. Idempotent."""
        with self._turn:
            self._removed = True
            if self._path and Path(self._path).exists():
                self._change(self._delete, REMOVE_PATIENCE_S)

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
        now = time.time()
        own, twins = (self._facts.app_id, self._facts.namespace), []
        for other in facts_in(db):
            if other.process == self._facts.process:
                continue
            age = now - other.started
            if (age > KEEP_DEAD_S and other.has_ended()) or (age > KEEP_UNSEEN_S and other.is_elsewhere()):
                db.execute("DELETE FROM tieline_sidecars WHERE process = ?", (other.process,))
            elif (other.app_id, other.namespace) == own and not other.has_ended():
                twins.append(other)
        db.execute("COMMIT")
        for twin in twins[:MAX_TWINS]:
            app = f", app port {twin.app_port}" if twin.app_port else ""
            _log.info("app ID %s has another sidecar, process %d%s: calls take turns", twin.app_id, twin.pid, app)

    def _delete(self, db: sqlite3.Connection) -> None:
        db.execute(_CREATE)
        db.execute("DELETE FROM tieline_sidecars WHERE process = ?", (self._facts.process,))


def write_facts(db: sqlite3.Connection, facts: SidecarFacts) -> None:
    """Write a sidecar's row within somebody's transaction; the table is made if it is missing."""
    db.execute(_CREATE)
    text = json.dumps(asdict(facts), ensure_ascii=True)
    db.execute("REPLACE INTO tieline_sidecars (process, facts) VALUES (?, ?)", (facts.process, text))


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
