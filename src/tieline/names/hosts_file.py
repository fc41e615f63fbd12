"""An SQLite file in which sidecars of one host find each other, in the table form of Dapr's SQLite resolver.

Several programs hold the file open at once: other sidecars, ``daprd`` processes, and whoever looks into it. So
each job is one short transaction, a locked file is waited for a little, and before each job it is checked that the
file under the path is still the one that is open. An SQLite connection to a deleted file goes on working, on
something that nobody else sees.

Everything here blocks. One thread owns a ``HostsFile`` (see ``file_resolver``).
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

BUSY_RETRY_S: Final = 0.05
"""Pause before a locked file is tried again (N-34)."""
OPEN_PATIENCE_S: Final = 10.0
"""How long the first opening waits for others that are just creating the file."""
MAX_ADDRESSES: Final = 256
"""Most addresses of one app that are looked at."""
MAX_KNOWN: Final = 100
"""Most names returned for a hint."""
MAX_NAME_BYTES: Final = 256
"""Longer names in the file are nobody's app IDs and are not shown."""
STALE_INTERVALS: Final = 720
"""A row this many update intervals old is deleted: an hour by default, so that no peer with a long interval,
which may be a ``daprd`` that ends when its row is gone (N-34), is ever taken for dead."""
PROTECT_S: Final = 86400.0
"""Age in seconds at which ``nr-last-cleanup`` is renewed; ``daprd`` peers delete live rows if it gets old (N-37)."""
PROTECT_CHECK_S: Final = 3600.0

_BROKEN_CODES: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Primary result codes that waiting does not heal: the file is damaged, or its tables are not ours."""
_CLEANUP_FORMAT: Final = "%Y-%m-%d %H:%M:%S"


class FileTrouble(Exception):
    """The file cannot be used now.

    Attributes:
        text: Why, in Dapr's words where it has some.
        broken: Whether the file itself is at fault: damaged, or with other tables than ours.
    """

    def __init__(self, text: str, *, broken: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.broken = broken


class Place(NamedTuple):
    """Where a database is."""

    uri: str
    """SQLite URI, ``file:…``."""
    path: str
    """File name; ``""`` for one in memory."""


class HostRow(NamedTuple):
    """What is registered."""

    app_id: str
    namespace: str
    """Empty in files that users configure, as ``daprd`` writes it (N-33)."""
    address: str
    """``host:port``, IPv6 in brackets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsSettings:
    """How a file is used (N-30). Times in seconds.

    Attributes:
        timeout_s: Limit for waiting on a locked file in one operation.
        busy_timeout_s: SQLite's own waiting on a lock, 0 or more; part of ``timeout_s`` for writers.
        update_interval_s: A row older than this is not used; whole seconds.
        cleanup_interval_s: Pause between deletions of dead rows; 0 or less for never.
        pragmas: More pragmas, e.g. ``synchronous(1)``.
    """

    hosts_table: str = "hosts"
    metadata_table: str = "metadata"
    timeout_s: float = 1.0
    busy_timeout_s: float = 0.8
    update_interval_s: int = 5
    cleanup_interval_s: float = 3600.0
    journal_mode: str = "WAL"
    pragmas: tuple[str, ...] = ()

    @property
    def heartbeat_s(self) -> float:
        """Pause between two heartbeats (N-34)."""
        return self.update_interval_s - self.timeout_s


class Companion(Protocol):
    """A further table that is kept in step with the ``hosts`` table, in the same transactions."""

    def create(self, db: sqlite3.Connection) -> None: ...
    def write(self, db: sqlite3.Connection, registration_id: str, now: int) -> None: ...
    def renew(self, db: sqlite3.Connection, registration_id: str, now: int) -> None: ...
    def remove(self, db: sqlite3.Connection, registration_id: str) -> None: ...
    def clean_up(self, db: sqlite3.Connection, newest: int) -> None: ...


class HostsFile:
    """The file, the own row in it, and what it says about others.

    Args:
        locate: Says where the file is, before each opening; may prepare the folder. Raises ``FileTrouble``.
        settings: How the file is used.
        row: What ``register`` writes.
        companion: A table of our own beside Dapr's two.
        namespaced: Find only rows of the namespace asked for, or of none; else the column is not read (N-35).
        salvage: Called with the path of a damaged file, which is closed; may put it aside, so that the next job
            starts a new one. Without it, a damaged file is left as it is: it is the user's.
        clock: Unix time in seconds.
        monotonic: A clock for intervals, in seconds.
        sleep: Waits some seconds.

    All methods raise ``FileTrouble``.
    """

    def __init__(
        self,
        locate: Callable[[], Place],
        settings: HostsSettings,
        row: HostRow,
        *,
        companion: Companion | None = None,
        namespaced: bool = False,
        salvage: Callable[[Path], None] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._locate = locate
        self._settings = settings
        self._row = row
        self._companion = companion
        self._namespaced = namespaced
        self._salvage = salvage
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._sql = _Statements(settings.hosts_table, settings.metadata_table, namespaced)
        self._db: sqlite3.Connection | None = None
        self._place = Place("", "")
        self._identity: tuple[int, int] | None = None
        self._last_opened: tuple[int, int] | None = None
        self._beside: tuple[object, object] = (None, None)
        self._registration = ""
        self._last_renewed = 0.0
        self._settled_at = float("-inf")
        self._protect_at = float("-inf")
        self._clean_at = monotonic() + settings.cleanup_interval_s

    @property
    def is_settling(self) -> bool:
        """Whether the file was replaced just now, so that not everybody is back in it."""
        return self._monotonic() < self._settled_at

    def open(self) -> None:
        """Open the file, create it and its tables if missing, and see that it can be written and read."""
        self._do("failed to register host", self._probe, OPEN_PATIENCE_S)

    def register(self) -> None:
        """Write the own row, in place of any other with the same address (N-33)."""
        self._do("failed to register host", self._write_row, self._settings.timeout_s)

    def renew(self) -> bool:
        """Make the own row fresh, and look after the file. Return ``False`` if the row had to be written again."""
        return self._do("Failed to update host registration", self._renew_row, self._settings.timeout_s)

    def remove(self) -> None:
        """Delete the own row (N-36); nothing if there is none."""
        if self._registration:
            self._do("failed to remove host registration", self._delete_row, self._settings.timeout_s)

    def look_up(self, app_id: str, namespace: str) -> list[str]:
        """Return the addresses of the fresh rows of an app, in an order that stays (N-35)."""
        if not _is_text(app_id) or not _is_text(namespace):
            return []  # bytes that a caller sent and that are no UTF-8: nobody can have registered them
        args = {"app_id": app_id, "newest_stale": self._newest_stale(), "namespace": namespace}
        return self._do("failed to look up address", lambda db: _column(db, self._sql.look_up, args), 0.0)

    def known(self) -> list[tuple[str, str]]:
        """Return app ID and namespace of everybody with a fresh row."""
        args = {"newest_stale": self._newest_stale()}
        return self._do("failed to look up address", lambda db: db.execute(self._sql.known, args).fetchall(), 0.0)

    def close(self) -> None:
        """Close the file; the last one to do so also removes what SQLite keeps beside it. Idempotent."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    # --- opening ---

    def _do(self, what: str, job: Callable[[sqlite3.Connection], T], patience_s: float) -> T:
        """Run a job on the open file; wait while others lock it, but no longer than told."""
        deadline = self._monotonic() + patience_s
        while True:
            try:
                return job(self._opened())
            except (sqlite3.Error, OSError) as error:
                if not _is_busy(error):
                    self._give_up_file(_is_broken(error))
                    raise FileTrouble(f"{what}: {explain(error)}", broken=_is_broken(error)) from error
                if self._monotonic() + BUSY_RETRY_S + self._settings.busy_timeout_s > deadline:
                    raise FileTrouble(f"{what}: {explain(error)}") from error
            except FileTrouble as trouble:
                self._give_up_file(trouble.broken)
                raise
            self._sleep(BUSY_RETRY_S)

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None and self._identity == _identity_of(self._place.path):
            return self._db
        self.close()
        place = self._locate()
        self._place = place
        remove_leftovers(place.path)
        self._identity = _identity_of(place.path)
        if self._last_opened not in (None, self._identity):
            self._settled_at = self._monotonic() + self._settings.update_interval_s
            self._part_from_old(place.path)
        db = self._connect(place)
        self._db = db
        self._identity = _identity_of(place.path)
        self._last_opened = self._identity
        self._beside = _beside(place.path)
        return db

    def _part_from_old(self, path: str) -> None:
        """Remove log and index that still are those of a file which another one has replaced (``mv new.db old.db``).

        SQLite would read the old log into the new file. If only one of them is the old one, somebody already works
        on the new file.
        """
        if None not in self._beside and self._beside == _beside(path):
            _unlink_beside(path)

    def _connect(self, place: Place) -> sqlite3.Connection:
        settings = self._settings
        try:
            db = sqlite3.connect(place.uri, uri=True, timeout=settings.busy_timeout_s, isolation_level=None)
        except sqlite3.Error as error:
            raise FileTrouble(_migrating(f"failed to get a connection from the pool: {explain(error)}")) from error
        try:
            db.execute(f"PRAGMA journal_mode={settings.journal_mode}")
            for pragma in settings.pragmas:
                db.execute(f"PRAGMA {pragma}")
            self._migrate(db)
        except sqlite3.Error as error:
            db.close()
            if _is_busy(error):
                raise
            raise FileTrouble(_migrating(explain(error)), broken=_is_broken(error)) from error
        except BaseException:
            db.close()
            raise
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Create what is missing, in one transaction (N-32), and take a file of others as it is (N-56)."""
        with _transaction(db):
            db.execute(self._sql.create_metadata)
            if self._migration_level(db) < 1:
                self._create_hosts(db)
                db.execute(self._sql.set_metadata, ("nr-migrations", "1"))
            if self._companion is not None:
                self._companion.create(db)
            self._protect(db)

    def _migration_level(self, db: sqlite3.Connection) -> int:
        row = db.execute(self._sql.get_metadata, ("nr-migrations",)).fetchone()
        if row is None:
            return 0
        try:
            return int(row[0])
        except ValueError:
            text = f"invalid migration level found in metadata table: {row[0]}"
            raise FileTrouble(_migrating(text), broken=True) from None

    def _create_hosts(self, db: sqlite3.Connection) -> None:
        try:
            for statement in self._sql.create_hosts:
                db.execute(statement)
        except sqlite3.Error as error:
            if _is_busy(error):
                raise
            text = f"failed to perform migration 0: failed to create hosts table: {explain(error)}"
            raise FileTrouble(_migrating(text), broken=_is_broken(error)) from error

    def _give_up_file(self, broken: bool) -> None:
        """Close the file, so that the next job opens it anew; a damaged one may be put aside before that."""
        self.close()
        if not broken or self._salvage is None or self._identity is None:
            return
        # Another sidecar may have put it aside already: then the file there now is a good one.
        if self._identity == _identity_of(self._place.path):
            self._salvage(Path(self._place.path))

    # --- jobs ---

    def _probe(self, db: sqlite3.Connection) -> None:
        with _transaction(db):  # fails on a file that cannot be written
            db.execute(self._sql.look_up, {"app_id": "", "newest_stale": 0, "namespace": ""}).fetchone()

    def _write_row(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            self._replace(db, int(self._clock()))

    def _replace(self, db: sqlite3.Connection, now: int) -> None:
        registration = str(uuid.uuid4())
        row = self._row
        db.execute(self._sql.register, (registration, row.address, row.app_id, row.namespace, now))
        if self._companion is not None:
            self._companion.write(db, registration, now)
        self._registration = registration
        self._last_renewed = now

    def _renew_row(self, db: sqlite3.Connection) -> bool:
        wall = self._clock()
        now = int(wall)
        with _transaction(db):
            changed = db.execute(self._sql.renew, (now, self._registration, self._row.address)).rowcount
            if not changed:
                if self._companion is not None:
                    self._companion.remove(db, self._registration)
                self._replace(db, now)
            elif self._companion is not None:
                self._companion.renew(db, self._registration, now)
            self._tend(db, wall)
        self._last_renewed = wall
        return bool(changed)

    def _tend(self, db: sqlite3.Connection, wall: float) -> None:
        """Protect peers from their own clean-up, and delete dead rows, each when it is time."""
        now = self._monotonic()
        if now >= self._protect_at:
            self._protect(db)
        if self._settings.cleanup_interval_s <= 0 or now < self._clean_at:
            return
        # After a sleep of the machine all rows look old until their owners have had their turn.
        if abs(wall - self._last_renewed) > 2 * self._settings.update_interval_s:
            return
        self._clean_at = now + self._settings.cleanup_interval_s
        newest = int(wall) - STALE_INTERVALS * self._settings.update_interval_s
        db.execute(self._sql.clean_up, (newest,))
        if self._companion is not None:
            self._companion.clean_up(db, newest)
        db.execute(self._sql.set_metadata, ("nr-last-cleanup", self._today(wall)))

    def _protect(self, db: sqlite3.Connection) -> None:
        wall = self._clock()
        row = db.execute(self._sql.get_metadata, ("nr-last-cleanup",)).fetchone()
        if row is None or _age_of(str(row[0]), wall) > PROTECT_S:
            db.execute(self._sql.set_metadata, ("nr-last-cleanup", self._today(wall)))
        self._protect_at = self._monotonic() + PROTECT_CHECK_S

    def _delete_row(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            db.execute(self._sql.remove, (self._registration, self._row.address))
            if self._companion is not None:
                self._companion.remove(db, self._registration)
        self._registration = ""

    def _newest_stale(self) -> int:
        return int(self._clock()) - self._settings.update_interval_s

    @staticmethod
    def _today(wall: float) -> str:
        return datetime.fromtimestamp(wall, UTC).strftime(_CLEANUP_FORMAT)


class _Statements:
    """The SQL on a pair of table names, which the settings have checked to be plain words."""

    def __init__(self, hosts: str, metadata: str, namespaced: bool) -> None:
        namespace = " AND namespace IN ('', :namespace)" if namespaced else ""
        # ruff: noqa: S608 - table names cannot be parameters; they match [0-9A-Za-z_]+
        self.create_metadata = (
            f"CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL)"
        )
        self.create_hosts = (
            (
                f"CREATE TABLE {hosts} (registration_id TEXT NOT NULL PRIMARY KEY, address TEXT NOT NULL,"
                " app_id TEXT NOT NULL, namespace TEXT NOT NULL, last_update INTEGER NOT NULL)"
            ),
            f"CREATE UNIQUE INDEX {hosts}_address_idx ON {hosts} (address)",
            f"CREATE INDEX {hosts}_last_update_idx ON {hosts} (last_update)",
        )
        self.get_metadata = f"SELECT value FROM {metadata} WHERE key = ?"
        self.set_metadata = f"REPLACE INTO {metadata} (key, value) VALUES (?, ?)"
        self.register = (
            f"REPLACE INTO {hosts} (registration_id, address, app_id, namespace, last_update) VALUES (?, ?, ?, ?, ?)"
        )
        self.renew = f"UPDATE {hosts} SET last_update = ? WHERE registration_id = ? AND address = ?"
        self.remove = f"DELETE FROM {hosts} WHERE registration_id = ? AND address = ?"
        self.clean_up = f"DELETE FROM {hosts} WHERE last_update <= ?"
        self.look_up = (
            f"SELECT address FROM {hosts} WHERE app_id = :app_id AND last_update > :newest_stale{namespace}"
            f" ORDER BY registration_id LIMIT {MAX_ADDRESSES}"
        )
        self.known = (
            f"SELECT DISTINCT app_id, namespace FROM {hosts} WHERE last_update > :newest_stale"
            f" AND length(app_id) <= {MAX_NAME_BYTES} ORDER BY app_id LIMIT {MAX_KNOWN}"
        )


def explain(error: sqlite3.Error | OSError) -> str:
    """Return a database error as ``daprd`` words it: text, then SQLite's number."""
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    code = _code_of(error)
    if code == sqlite3.SQLITE_BUSY:
        return "database is locked (5) (SQLITE_BUSY)"
    if code == sqlite3.SQLITE_ERROR:
        return f"SQL logic error: {error} (1)"
    return f"{error} ({code})" if code else str(error)


def _code_of(error: Exception) -> int:
    """Return the primary result code of an SQLite error, 0 if it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_busy(error: Exception) -> bool:
    return _code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_broken(error: Exception) -> bool:
    return _code_of(error) in _BROKEN_CODES


def _migrating(text: str) -> str:
    return f"failed to perform migrations: {text}"


def _age_of(text: str, wall: float) -> float:
    """Return the age in seconds of an ``nr-last-cleanup``; one that cannot be read is as old as can be."""
    try:
        return wall - datetime.strptime(text, _CLEANUP_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return float("inf")


def _column(db: sqlite3.Connection, sql: str, args: Mapping[str, object]) -> list[str]:
    return [str(row[0]) for row in db.execute(sql, args)]


def _is_text(name: str) -> bool:
    """Whether SQLite can take a name: it has no lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity_of(path: str) -> tuple[int, int] | None:
    """Return what tells a file from another under the same name; ``None`` without a file."""
    if not path:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - on the way of every job; ten times cheaper than a Path
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove_leftovers(path: str) -> None:
    """Remove what SQLite kept beside a file that is gone.

    Others may still have the deleted file open, with its log and its index mapped. A new file under the old name
    would share these with them, and be damaged.
    """
    if path and not os.path.lexists(path):
        _unlink_beside(path)


def _unlink_beside(path: str) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        Path(path + suffix).unlink(missing_ok=True)


def _beside(path: str) -> tuple[object, object]:
    """Return what tells log and index of a database from others under the same names."""
    return _identity_of(f"{path}-wal"), _identity_of(f"{path}-shm")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Generator[None]:
    """Run a block as the only writer, wholly or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
