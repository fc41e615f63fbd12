"""The local registry: a file in the user's state folder in which the sidecars of one machine find each other.

It is what works without any configuration and without multicast. In the table format of Dapr's SQLite resolver,
so that ``daprd`` processes can share it, with a table of our own beside for ``tieline list``.

Whoever can write it decides where calls go. So the folder is 0700 and the file 0600, both belong to this user and
are no links, and nothing but addresses of this host is ever taken from it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import tieline
from tieline.errors import StartError
from tieline.model import Endpoint
from tieline.names.file_resolver import FileResolver
from tieline.names.hosts_file import FileTrouble, HostRow, HostsFile, HostsSettings, Place, explain, remove_leftovers
from tieline.names.resolver import InstanceFacts, Spawn
from tieline.names.sidecars import SidecarEntry, SidecarFacts, facts_in, is_plausible, write_facts

REGISTRY_FILE: Final = "registry.db"
SETTINGS: Final = HostsSettings(pragmas=("synchronous(NORMAL)",))
"""Dapr's defaults, so that peers agree on what is fresh; without a flush to disk for each heartbeat."""
MAX_INSTANCES: Final = 1000
"""Most instances that are listed."""

_log: Final = logging.getLogger("tieline.names")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A sidecar that is announced in the registry.

    Attributes:
        address: Internal address, ``host:port``.
        namespace: Empty for a ``daprd``, which does not say.
        http_port: This and all below are 0 or empty for a ``daprd``.
        started: Unix time in seconds; ``last_update`` too.
    """

    registration_id: str
    app_id: str
    namespace: str
    address: str
    http_port: int
    grpc_port: int
    internal_port: int
    app_port: int
    pid: int
    started: float
    version: str
    last_update: int

    def is_fresh(self, now: float) -> bool:
        """Whether it is found by those who call it, at a Unix time in seconds."""
        return self.last_update > int(now) - SETTINGS.update_interval_s


class Content(NamedTuple):
    """All that is in a registry file."""

    instances: list[Instance]
    """Who is announced, those included whose heartbeat has stopped."""
    sidecars: list[SidecarFacts]
    """Who left word of itself, those included that have ended without taking it back."""


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for Tieline's own files of this user, made if missing, and safe to trust.

    ``$XDG_STATE_HOME/tieline``; else ``~/.local/state/tieline``; else, where the home cannot be used, a folder of
    this user's own among the temporary files.

    Raises:
        StartError: There is none that can be used.
    """
    given = environ.get("XDG_STATE_HOME", "")
    if given.startswith("/"):  # relative ones are to be ignored, says the XDG specification
        return _secured_folder(Path(given) / "tieline")
    temporary = Path(environ.get("TMPDIR") or "/tmp") / f"tieline-{os.getuid()}"  # noqa: S108 - owner checked below
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        return _secured_folder(temporary)
    try:
        return _secured_folder(Path(home) / ".local" / "state" / "tieline")
    except StartError as error:
        _log.debug("%s; using %s", error, temporary)
        return _secured_folder(temporary)


def find_registry(environ: Mapping[str, str]) -> Path:
    """Return where the registry of this user is, or would be. Touches nothing, unlike ``state_folder``."""
    given = environ.get("XDG_STATE_HOME", "")
    if given.startswith("/"):
        return Path(given) / "tieline" / REGISTRY_FILE
    temporary = Path(environ.get("TMPDIR") or "/tmp") / f"tieline-{os.getuid()}" / REGISTRY_FILE  # noqa: S108 - as above
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        return temporary
    usual = Path(home) / ".local" / "state" / "tieline" / REGISTRY_FILE
    usable = os.access(usual.parent, os.W_OK | os.X_OK) or not temporary.exists()
    return usual if usable else temporary


def local_registry(
    facts: InstanceFacts,
    *,
    environ: Mapping[str, str],
    spawn: Spawn,
    address: str = "127.0.0.1",
    own_addresses: Collection[str] = (),
    sidecar: SidecarFacts | None = None,
) -> FileResolver:
    """Make the resolver on this user's registry.

    A registry that cannot be used never stops the start: it warns once, finds nobody, and tries again with each
    heartbeat.

    Args:
        facts: What is announced, beside the address.
        environ: Says where the state folder is.
        spawn: Starts the heartbeat.
        address: What to register: an IP literal of this host on which the internal port listens.
        own_addresses: IP literals of this host that may be dialled beside loopback ones.
        sidecar: Written beside the announcement, so that it is there again after a loss of the file.
    """
    row = HostRow(facts.app_id, facts.namespace, str(Endpoint(address, facts.internal_port)))
    file = HostsFile(
        lambda: _place(environ),
        SETTINGS,
        row,
        companion=_Instances(facts, sidecar),
        namespaced=True,
        salvage=_put_aside,
    )
    return FileResolver(
        "local registry",
        file,
        namespace=facts.namespace,
        heartbeat_s=SETTINGS.heartbeat_s,
        spawn=spawn,
        unknown_text=lambda app_id: f"couldn't find service: {app_id}",
        accept=lambda endpoint: _is_own(endpoint.host, own_addresses),
    )


def sidecar_entry(facts: SidecarFacts, environ: Mapping[str, str]) -> SidecarEntry:
    """Make the row that tells tools of this sidecar, whatever it looks names up in."""
    return SidecarEntry(lambda: _place(environ).path, facts)


def read_instances(path: Path, *, clock: Callable[[], float] = time.time) -> list[Instance]:
    """Return who is in a registry file now, ``daprd`` processes included, by app ID; ``[]`` without a file. Blocks.

    Raises:
        StartError: The file cannot be trusted or read.
    """
    now = clock()
    return [instance for instance in read_registry(path).instances if instance.is_fresh(now)]


def read_registry(path: Path) -> Content:
    """Return all that is in a registry file; nothing without a file. Blocks, for some seconds at most.

    Raises:
        StartError: The file cannot be trusted or read.
    """
    try:
        _check_owner(path.parent, os.lstat(path.parent), stat.S_ISDIR)
        _check_owner(path, os.lstat(path), stat.S_ISREG)
    except FileNotFoundError:
        return Content([], [])
    except OSError as error:
        raise StartError(f"cannot read the local registry {path}: {explain(error)}") from error
    try:
        rows, sidecars = _content(path)
    except sqlite3.Error as error:
        raise StartError(f"cannot read the local registry {path}: {explain(error)}") from error
    # Foreign programs may write anything into a cell; SQLite keeps any type in any column.
    return Content([_instance(row) for row in rows], sidecars)


def _content(path: Path) -> tuple[list[tuple[object, ...]], list[SidecarFacts]]:
    uri = f"file:{quote(str(path))}"
    try:
        return _content_at(f"{uri}?mode=rw")
    except sqlite3.OperationalError as error:
        # Reading takes a file beside it, which cannot be made in a folder that is read-only.
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        return _content_at(f"{uri}?immutable=1")


def _content_at(uri: str) -> tuple[list[tuple[object, ...]], list[SidecarFacts]]:
    with closing(sqlite3.connect(uri, uri=True, timeout=SETTINGS.timeout_s, isolation_level=None)) as db:
        # Names may hold bytes that are no UTF-8: nothing of the kind may hide the rest.
        db.text_factory = lambda text: text.decode("utf-8", "replace")
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        rows: list[tuple[object, ...]] = []
        if "hosts" in tables:
            rows = db.execute(_LIST if "tieline_instances" in tables else _LIST_HOSTS, (MAX_INSTANCES,)).fetchall()
        return rows, facts_in(db)


def _instance(row: tuple[object, ...]) -> Instance:
    texts = [str(value) for value in row[:5]]
    last_update = row[5] if isinstance(row[5], int) else 0
    names = ("http_port", "grpc_port", "internal_port", "app_port", "pid")
    numbers = [
        value if isinstance(value, int) and is_plausible(name, value) else 0
        for name, value in zip(names, row[6:11], strict=True)
    ]
    started = row[11]
    return Instance(
        registration_id=texts[0],
        app_id=texts[1],
        namespace=texts[2],
        address=texts[3],
        version=texts[4],
        last_update=last_update,
        http_port=numbers[0],
        grpc_port=numbers[1],
        internal_port=numbers[2],
        app_port=numbers[3],
        pid=numbers[4],
        started=started if isinstance(started, float) and is_plausible("started", started) else 0.0,
    )


_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS tieline_instances (registration_id TEXT NOT NULL PRIMARY KEY, app_id TEXT NOT NULL,"
    " namespace TEXT NOT NULL, http_port INTEGER NOT NULL, grpc_port INTEGER NOT NULL,"
    " internal_port INTEGER NOT NULL, app_port INTEGER NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL,"
    " version TEXT NOT NULL, last_update INTEGER NOT NULL)"
)
_LIST: Final = (
    "SELECT registration_id, h.app_id, h.namespace, h.address, coalesce(i.version, ''), h.last_update, i.http_port,"
    " i.grpc_port, i.internal_port, i.app_port, i.pid, i.started FROM hosts h LEFT JOIN tieline_instances i"
    " USING (registration_id) ORDER BY h.app_id, h.address LIMIT ?"
)
_LIST_HOSTS: Final = (
    "SELECT registration_id, app_id, namespace, address, '', last_update, 0, 0, 0, 0, 0, 0.0 FROM hosts"
    " ORDER BY app_id, address LIMIT ?"
)


class _Instances:
    """The table ``tieline_instances``: what Dapr's table has no columns for."""

    def __init__(self, facts: InstanceFacts, sidecar: SidecarFacts | None) -> None:
        self._facts = facts
        self._sidecar = sidecar

    def create(self, db: sqlite3.Connection) -> None:
        db.execute(_CREATE)

    def write(self, db: sqlite3.Connection, registration_id: str, now: int) -> None:
        facts = self._facts
        db.execute(
            "REPLACE INTO tieline_instances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                registration_id,
                facts.app_id,
                facts.namespace,
                facts.http_port,
                facts.grpc_port,
                facts.internal_port,
                facts.app_port,
                facts.pid,
                facts.started,
                tieline.__version__,
                now,
            ),
        )
        if self._sidecar is not None:
            write_facts(db, self._sidecar)

    def renew(self, db: sqlite3.Connection, registration_id: str, now: int) -> None:
        sql = "UPDATE tieline_instances SET last_update = ? WHERE registration_id = ?"
        if not db.execute(sql, (now, registration_id)).rowcount:
            self.write(db, registration_id, now)

    def remove(self, db: sqlite3.Connection, registration_id: str) -> None:
        db.execute("DELETE FROM tieline_instances WHERE registration_id = ?", (registration_id,))

    def clean_up(self, db: sqlite3.Connection, newest: int) -> None:
        db.execute("DELETE FROM tieline_instances WHERE last_update <= ?", (newest,))


def _place(environ: Mapping[str, str]) -> Place:
    """Return where the registry is, once its folder and file are safe."""
    try:
        path = state_folder(environ) / REGISTRY_FILE
        _secure_file(path)
    except (StartError, OSError) as error:
        raise FileTrouble(str(error)) from error
    return Place(f"file:{quote(str(path))}", str(path))


def _secured_folder(path: Path) -> Path:
    """Make a folder, or see that it belongs to this user alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is a file or a link" if os.path.lexists(path) else error.strerror
        raise StartError(f"cannot use {path} as state folder: {reason}; set XDG_STATE_HOME") from error
    try:
        status = os.fstat(folder)
        _check_owner(path, status, stat.S_ISDIR)
        if status.st_mode & 0o077:
            os.fchmod(folder, 0o700)
    finally:
        os.close(folder)
    if not os.access(path, os.W_OK | os.X_OK):
        raise StartError(f"cannot use {path} as state folder: it cannot be written; set XDG_STATE_HOME")
    return path


def _secure_file(path: Path) -> None:
    """Make the file, or see that it belongs to this user alone.

    An existing one is not opened: closing it again would drop the locks of every SQLite connection that this
    process has to it.
    """
    remove_leftovers(str(path))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        status = os.lstat(path)
        _check_owner(path, status, stat.S_ISREG)
        if status.st_mode & 0o077:
            path.chmod(0o600)


def _check_owner(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(status.st_mode):
        raise StartError(f"{path} is not used: it is a link or of the wrong kind; remove it")
    if status.st_uid != os.getuid():
        raise StartError(f"{path} is not used: it belongs to user {status.st_uid}, not to {os.getuid()}; remove it")


def _put_aside(path: Path) -> None:
    """Rename a damaged registry, so that a new one is made in its place. Nothing in it is worth a repair."""
    for suffix in ("", "-wal", "-shm"):
        broken = Path(f"{path}{suffix}")
        if broken.exists():
            broken.replace(f"{path}.broken{suffix}")


def _is_own(host: str, own_addresses: Collection[str]) -> bool:
    """Whether an address from the registry is this host's; names are not, since others decide what they mean."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or host in own_addresses
