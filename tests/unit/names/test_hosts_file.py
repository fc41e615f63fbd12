"""The shared file of names, job by job, on real SQLite files."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.names import DAPR_SCHEMA, NOW, Clock, sql, write_row
from tieline.names.hosts_file import FileTrouble, HostRow, HostsFile, HostsSettings, Place

ROW = HostRow("orders", "", "127.0.0.1:3502")
QUICK = HostsSettings(busy_timeout_s=0)
LAST_CLEANUP = "SELECT value FROM metadata WHERE key = 'nr-last-cleanup'"

Make = Callable[..., HostsFile]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "names.db"


@pytest.fixture
def make(path: Path, clock: Clock) -> Iterator[Make]:
    """Makes files on one path that share a clock, and closes them."""
    made = []

    def make(row: HostRow = ROW, settings: HostsSettings = QUICK, **more: Any) -> HostsFile:
        place = Place(f"file:{path}", str(path))
        file = HostsFile(lambda: place, settings, row, clock=clock, monotonic=clock, sleep=clock.sleep, **more)
        made.append(file)
        return file

    yield make
    for file in made:
        file.close()


def stamp(age: float) -> str:
    return datetime.fromtimestamp(NOW - age, UTC).strftime("%Y-%m-%d %H:%M:%S")


def locked(path: Path, kind: str = "EXCLUSIVE") -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"BEGIN {kind}")
    return db


@pytest.mark.rule("N-31", "N-32", "N-37")
def test_a_fresh_file_has_the_tables_that_daprd_makes(path: Path, make: Make) -> None:
    make().open()

    columns = [(name, kind, notnull, pk) for _, name, kind, notnull, _, pk in sql(path, "PRAGMA table_info(hosts)")]
    assert columns == [
        ("registration_id", "TEXT", 1, 1),
        ("address", "TEXT", 1, 0),
        ("app_id", "TEXT", 1, 0),
        ("namespace", "TEXT", 1, 0),
        ("last_update", "INTEGER", 1, 0),
    ]
    assert [row[1:4] for row in sql(path, "PRAGMA table_info(metadata)")] == [("key", "TEXT", 1), ("value", "TEXT", 1)]
    indexes = {row[1]: row[2] for row in sql(path, "PRAGMA index_list(hosts)")}
    assert indexes["hosts_address_idx"] == 1
    assert indexes["hosts_last_update_idx"] == 0
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]
    assert sql(path, "PRAGMA user_version") == [(0,)]
    assert sql(path, "SELECT * FROM metadata ORDER BY key") == [("nr-last-cleanup", stamp(0)), ("nr-migrations", "1")]


@pytest.mark.rule("N-31")
def test_without_wal_other_programs_see_the_rollback_journal(path: Path, make: Make) -> None:
    make(settings=replace(QUICK, journal_mode="DELETE")).open()

    assert sql(path, "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.rule("N-33")
def test_a_registered_row_is_found_by_daprs_query(path: Path, make: Make) -> None:
    make().register()

    found = sql(path, ("SELECT address FROM hosts WHERE app_id=? AND last_update>?", ("orders", NOW - 5)))
    assert found == [("127.0.0.1:3502",)]
    assert sql(path, "SELECT namespace, last_update, length(registration_id) FROM hosts") == [("", NOW, 36)]


@pytest.mark.rule("N-33")
def test_a_row_takes_the_place_of_an_older_one_with_its_address(path: Path, make: Make) -> None:
    file = make()
    file.open()
    write_row(path, "127.0.0.1:3502", "dead")

    file.register()

    assert sql(path, "SELECT app_id FROM hosts") == [("orders",)]


@pytest.mark.rule("N-35")
@pytest.mark.parametrize(("age", "found"), [(0, True), (3, True), (4, True), (5, False), (60, False), (-1000, True)])
def test_a_row_is_used_until_it_is_as_old_as_the_callers_interval(
    path: Path, make: Make, age: int, found: bool
) -> None:
    file = make()
    file.open()
    write_row(path, "127.0.0.1:3512", "callee", age=age)

    assert file.look_up("callee", "default") == (["127.0.0.1:3512"] if found else [])


@pytest.mark.rule("N-35", "N-14", "N-53")
def test_ids_are_compared_by_case_and_the_namespace_is_not_read(path: Path, make: Make) -> None:
    file = make()
    file.open()
    write_row(path, "127.0.0.1:3512", "callee", namespace="green")

    assert file.look_up("callee", "default") == ["127.0.0.1:3512"]
    assert file.look_up("Callee", "default") == []


@pytest.mark.rule("N-53")
def test_a_namespaced_file_finds_the_namespace_asked_for_or_none(path: Path, make: Make) -> None:
    file = make(namespaced=True)
    file.open()
    write_row(path, "127.0.0.1:1", "callee", namespace="green")
    write_row(path, "127.0.0.1:2", "callee", namespace="blue")
    write_row(path, "127.0.0.1:3", "callee")

    assert file.look_up("callee", "green") == ["127.0.0.1:1", "127.0.0.1:3"]


@pytest.mark.rule("N-34")
def test_a_heartbeat_makes_the_row_fresh(path: Path, make: Make, clock: Clock) -> None:
    file = make()
    file.register()
    clock.now += 4

    assert file.renew()

    assert sql(path, "SELECT last_update FROM hosts") == [(NOW + 4,)]


@pytest.mark.rule("N-34")
@pytest.mark.parametrize("loss", ["DELETE FROM hosts", "UPDATE hosts SET registration_id = 'x', app_id = 'thief'"])
def test_a_lost_row_is_written_again(path: Path, make: Make, loss: str) -> None:
    file = make()
    file.register()
    sql(path, loss)

    assert not file.renew()

    assert sql(path, "SELECT app_id, address FROM hosts") == [("orders", "127.0.0.1:3502")]
    assert file.renew()


@pytest.mark.rule("N-34")
def test_a_heartbeat_waits_for_a_lock_within_its_timeout(path: Path, make: Make, clock: Clock) -> None:
    file = make()
    file.register()
    other = locked(path)

    with pytest.raises(FileTrouble, match=r"database is locked \(5\) \(SQLITE_BUSY\)"):
        file.renew()
    assert set(clock.slept) == {0.05}
    assert 0.9 <= sum(clock.slept) <= 1.01

    other.close()
    assert file.renew()


@pytest.mark.rule("N-31")
def test_in_wal_mode_a_lock_held_by_others_does_not_stop_a_look_up(path: Path, make: Make) -> None:
    file = make()
    file.register()
    other = locked(path)

    assert file.look_up("orders", "default") == ["127.0.0.1:3502"]
    other.close()


@pytest.mark.rule("N-31", "N-35")
def test_without_wal_a_look_up_fails_on_a_foreign_lock(path: Path, make: Make, clock: Clock) -> None:
    file = make(settings=replace(QUICK, journal_mode="DELETE"))
    file.register()
    other = locked(path)

    with pytest.raises(FileTrouble) as caught:
        file.look_up("orders", "default")

    assert caught.value.text == "failed to look up address: database is locked (5) (SQLITE_BUSY)"
    assert clock.slept == []
    other.close()


@pytest.mark.rule("N-36")
def test_closing_deletes_the_own_row_and_leaves_only_the_database(path: Path, make: Make) -> None:
    file = make()
    file.register()
    sql(path, "SELECT 1")
    write_row(path, "127.0.0.1:3512", "other")

    file.remove()
    file.close()

    assert sql(path, "SELECT app_id FROM hosts") == [("other",)]
    assert [entry.name for entry in path.parent.iterdir()] == ["names.db"]


@pytest.mark.rule("N-37")
@pytest.mark.parametrize(("age", "kept"), [(6, True), (-1, True), (1000, True), (3700, False)])
def test_clean_up_deletes_dead_rows_and_never_live_ones(
    path: Path, make: Make, clock: Clock, age: int, kept: bool
) -> None:
    file = make(settings=replace(QUICK, cleanup_interval_s=4))
    file.register()
    write_row(path, "127.0.0.1:9", "other", age=age)
    clock.now += 4

    file.renew()

    assert sql(path, "SELECT app_id FROM hosts ORDER BY 1") == [("orders",)] + ([("other",)] if kept else [])
    assert sql(path, LAST_CLEANUP) == [(stamp(-4),)]


@pytest.mark.rule("N-30", "N-37")
def test_a_clean_up_interval_of_nothing_means_never(path: Path, make: Make, clock: Clock) -> None:
    file = make(settings=replace(QUICK, cleanup_interval_s=0))
    file.register()
    write_row(path, "127.0.0.1:9", "dead", age=99_999)
    clock.now += 4

    file.renew()

    assert ("dead",) in sql(path, "SELECT app_id FROM hosts")


@pytest.mark.rule("N-37")
def test_after_a_sleep_of_the_machine_everybody_gets_a_turn_before_the_clean_up(
    path: Path, make: Make, clock: Clock
) -> None:
    """All rows look dead then; a ``daprd`` would end without its row."""
    file = make(settings=replace(QUICK, cleanup_interval_s=4))
    file.register()
    write_row(path, "127.0.0.1:3512", "daprd")
    clock.now += 8 * 3600

    file.renew()
    assert ("daprd",) in sql(path, "SELECT app_id FROM hosts")

    clock.now += 4
    file.renew()
    assert sql(path, "SELECT app_id FROM hosts") == [("orders",)]


@pytest.mark.rule("N-37")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, stamp(0)),
        (stamp(3 * 86400), stamp(0)),
        ("yesterday", stamp(0)),
        (stamp(3600), stamp(3600)),
    ],
)
def test_daprd_peers_are_kept_from_their_own_clean_up(path: Path, make: Make, before: str | None, after: str) -> None:
    sql(path, *DAPR_SCHEMA, "INSERT INTO metadata VALUES ('nr-migrations', '1')")
    if before is not None:
        sql(path, ("INSERT INTO metadata VALUES ('nr-last-cleanup', ?)", (before,)))

    make().open()

    assert sql(path, LAST_CLEANUP) == [(after,)]


@pytest.mark.rule("N-37")
def test_the_protection_of_daprd_peers_is_renewed_while_running(path: Path, make: Make, clock: Clock) -> None:
    file = make(settings=replace(QUICK, cleanup_interval_s=0))
    file.register()
    clock.now += 2 * 86400

    file.renew()

    assert sql(path, LAST_CLEANUP) == [(stamp(-2 * 86400),)]


@pytest.mark.rule("N-56")
@pytest.mark.parametrize(
    "more",
    [
        ["INSERT INTO metadata VALUES ('nr-migrations', '1')"],
        ["PRAGMA journal_mode=WAL", "INSERT INTO metadata VALUES ('nr-migrations', '1')"],
        ["INSERT INTO metadata VALUES ('nr-migrations', '2')"],
        [
            "ALTER TABLE hosts ADD COLUMN zone text NOT NULL DEFAULT ''",
            "CREATE TABLE other(x)",
            "INSERT INTO metadata VALUES ('nr-migrations', '1')",
            "INSERT INTO metadata VALUES ('else', '1')",
        ],
        ["DROP INDEX hosts_address_idx", "INSERT INTO metadata VALUES ('nr-migrations', '1')"],
    ],
)
def test_a_file_of_another_program_is_taken_over(path: Path, make: Make, more: list[str]) -> None:
    sql(path, *DAPR_SCHEMA, *more)
    write_row_named = "INSERT INTO hosts (registration_id, address, app_id, namespace, last_update) VALUES (?,?,?,?,?)"
    sql(path, (write_row_named, ("1", "127.0.0.1:3512", "callee", "", NOW)))
    file = make()

    file.open()
    file.register()

    assert file.look_up("callee", "default") == ["127.0.0.1:3512"]
    assert file.look_up("orders", "default") == ["127.0.0.1:3502"]


@pytest.mark.rule("N-56")
@pytest.mark.parametrize(
    ("statements", "text"),
    [
        (
            DAPR_SCHEMA,
            (
                "failed to perform migrations: failed to perform migration 0: failed to create hosts table:"
                " SQL logic error: table hosts already exists (1)"
            ),
        ),
        (
            [*DAPR_SCHEMA, "INSERT INTO metadata VALUES ('nr-migrations', 'x')"],
            "failed to perform migrations: invalid migration level found in metadata table: x",
        ),
        (
            [DAPR_SCHEMA[0], "INSERT INTO metadata VALUES ('nr-migrations', '1')"],
            "failed to register host: SQL logic error: no such table: hosts (1)",
        ),
    ],
)
def test_a_file_with_other_tables_is_refused_as_it_is(path: Path, make: Make, statements: list[str], text: str) -> None:
    sql(path, *statements)

    with pytest.raises(FileTrouble) as caught:
        make().open()

    assert caught.value.text == text
    tables = [row[0] for row in sql(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert tables == [statement.split()[2] for statement in statements if statement.startswith("CREATE TABLE")]


@pytest.mark.rule("N-30", "N-32")
@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata", "table metadata already exists (1)"),
        ("9x", 'unrecognized token: "9x" (1)'),
        ("sqlite_x", "object name reserved for internal use: sqlite_x (1)"),
        ("group", 'near "group": syntax error (1)'),
    ],
)
def test_table_names_that_sql_refuses_fail_in_sql_and_leave_nothing(
    path: Path, make: Make, table: str, text: str
) -> None:
    with pytest.raises(FileTrouble) as caught:
        make(settings=replace(QUICK, hosts_table=table)).open()

    start = (
        "failed to perform migrations: failed to perform migration 0: failed to create hosts table: SQL logic error: "
    )
    assert caught.value.text == start + text
    assert sql(path, "SELECT name FROM sqlite_master") == []


def test_a_folder_that_is_missing_is_said_so(make: Make, tmp_path: Path) -> None:
    place = Place(f"file:{tmp_path}/no/such/n.db", f"{tmp_path}/no/such/n.db")
    file = HostsFile(lambda: place, QUICK, ROW)

    with pytest.raises(FileTrouble) as caught:
        file.open()

    assert caught.value.text == (
        "failed to perform migrations: failed to get a connection from the pool: unable to open database file (14)"
    )


def test_a_deleted_file_is_made_anew_and_everybody_comes_back(path: Path, make: Make, clock: Clock) -> None:
    first = make()
    second = make(HostRow("billing", "", "127.0.0.1:3512"))
    first.register()
    second.register()

    path.unlink()

    assert not first.renew()
    assert first.is_settling
    assert first.look_up("billing", "") == []
    assert not second.renew()
    assert first.look_up("billing", "") == ["127.0.0.1:3512"]
    assert second.look_up("orders", "") == ["127.0.0.1:3502"]
    clock.now += 5
    assert not first.is_settling
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_new_file_shares_nothing_with_a_deleted_one_that_others_still_have_open(path: Path, make: Make) -> None:
    """With the old index in place, both would write over each other's pages."""
    make().register()
    old = {name: path.with_name(name).stat().st_ino for name in ("names.db-wal", "names.db-shm")}
    path.unlink()

    make(HostRow("billing", "", "127.0.0.1:3512")).register()

    assert all(path.with_name(name).stat().st_ino != inode for name, inode in old.items())
    assert sql(path, "SELECT app_id FROM hosts") == [("billing",)]


def test_a_damaged_file_is_left_to_its_user(path: Path, make: Make) -> None:
    path.write_bytes(b"no database at all" * 100)
    file = make()

    with pytest.raises(FileTrouble, match=r"file is not a database \(26\)") as caught:
        file.open()

    assert caught.value.broken
    assert path.read_bytes().startswith(b"no database")


def test_a_damaged_file_is_put_aside_where_that_is_allowed(path: Path, make: Make) -> None:
    aside: list[Path] = []

    def put_aside(broken: Path) -> None:
        aside.append(broken)
        broken.unlink()

    file = make(salvage=put_aside)
    file.register()
    sql(path, "PRAGMA journal_mode")
    file.close()
    path.write_bytes(b"no database at all" * 100)

    with pytest.raises(FileTrouble):
        file.look_up("orders", "")
    assert not file.renew()

    assert aside == [path]
    assert file.look_up("orders", "") == ["127.0.0.1:3502"]


def test_a_file_put_in_place_of_another_is_not_mixed_with_the_log_of_the_old_one(path: Path, make: Make) -> None:
    file = make()
    file.register()
    sql(path, "DROP TABLE hosts")

    good = path.with_suffix(".good")
    sql(good, *DAPR_SCHEMA, "INSERT INTO metadata VALUES ('nr-migrations', '1')")
    good.replace(path)

    assert not file.renew()
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_good_file_that_another_sidecar_was_quicker_to_make_is_not_put_aside(path: Path, make: Make) -> None:
    class Quicker:
        """Replaces the file while this one finds it damaged."""

        def create(self, db: sqlite3.Connection) -> None:
            good = path.with_suffix(".good")
            sql(good, *DAPR_SCHEMA, "INSERT INTO metadata VALUES ('nr-migrations', '1')")
            good.replace(path)
            damage = sqlite3.DatabaseError("database disk image is malformed")
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage

    aside: list[Path] = []
    path.touch()

    with pytest.raises(FileTrouble, match=r"database disk image is malformed \(11\)") as caught:
        make(companion=Quicker(), salvage=aside.append).open()

    assert caught.value.broken
    assert aside == []


def test_a_file_that_cannot_be_written_can_still_be_read(path: Path, make: Make) -> None:
    file = make()
    file.register()
    sql(
        path,
        "CREATE TRIGGER t BEFORE UPDATE ON hosts BEGIN"
        " SELECT RAISE(ABORT, 'attempt to write a readonly database'); END",
    )

    with pytest.raises(FileTrouble, match="Failed to update host registration: attempt to write"):
        file.renew()
    assert file.look_up("orders", "") == ["127.0.0.1:3502"]


def test_only_names_that_can_be_app_ids_are_shown(path: Path, make: Make) -> None:
    file = make()
    file.open()
    write_row(path, "127.0.0.1:1", "b", namespace="green")
    write_row(path, "127.0.0.1:2", "a")
    write_row(path, "127.0.0.1:3", "a")
    write_row(path, "127.0.0.1:4", "x" * 10_000)
    write_row(path, "127.0.0.1:5", "stale", age=10)

    assert file.known() == [("a", ""), ("b", "green")]
