"""Who runs here: rows of the registry held against the kernel."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tieline.cli.roster import Member, Status, matching, members
from tieline.errors import StartError
from tieline.names.registry import find_registry, sidecar_entry
from tieline.names.sidecars import SidecarFacts, process_space, process_start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of processes on Linux only")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path)}


def execute(environ: dict[str, str], *statements: tuple[str, Any]) -> None:
    path = find_registry(environ)
    path.parent.mkdir(exist_ok=True)
    with sqlite3.connect(path) as db:
        for sql, arguments in statements:
            db.execute(sql, arguments)
    db.close()


HOSTS = (
    "CREATE TABLE IF NOT EXISTS hosts (registration_id TEXT NOT NULL PRIMARY KEY, address TEXT NOT NULL,"
    " app_id TEXT NOT NULL, namespace TEXT NOT NULL, last_update INTEGER NOT NULL)"
)
OWN = (
    "CREATE TABLE IF NOT EXISTS tieline_instances (registration_id TEXT NOT NULL PRIMARY KEY, app_id TEXT NOT NULL,"
    " namespace TEXT NOT NULL, http_port INTEGER NOT NULL, grpc_port INTEGER NOT NULL, internal_port INTEGER NOT NULL,"
    " app_port INTEGER NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL, version TEXT NOT NULL,"
    " last_update INTEGER NOT NULL)"
)


def announced(app_id: str, age: float, namespace: str = "", address: str = "127.0.0.1:5") -> tuple[str, Any]:
    return "INSERT INTO hosts VALUES (?, ?, ?, ?, ?)", (app_id, address, app_id, namespace, int(time.time() - age))


def older(app_id: str, pid: int, started: float) -> tuple[str, Any]:
    values = (app_id, app_id, "default", 3500, 0, 5, 8080, pid, started, "0.1.0", int(time.time()))
    return "INSERT INTO tieline_instances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values


def test_dates_and_ports_that_are_none_are_not_shown(environ: dict[str, str]) -> None:
    sql, values = older("strange", os.getpid(), 1e300)
    values = (*values[:3], 1 << 40, *values[4:])
    execute(environ, (HOSTS, ()), (OWN, ()), announced("strange", 0), (sql, values))

    (found,) = members(environ, ask_them=False)

    assert (found.facts.started, found.facts.http_port, found.address) == (0.0, 0, None)


def names(found: list[Member]) -> dict[str, str]:
    return {member.facts.app_id: member.status.value for member in found}


@pytest.mark.rule("N-32", "N-56")
def test_a_daprd_that_shares_the_registry_is_known_by_its_heartbeat_alone(environ: dict[str, str]) -> None:
    execute(environ, (HOSTS, ()), announced("fresh", 1), announced("gone", 60, address="127.0.0.1:6"))

    found = members(environ)

    assert names(found) == {"fresh": "announced", "gone": "dead"}
    assert not any(member.is_ours for member in found)
    assert found[1].detail.startswith("no heartbeat for 6")


def test_a_number_that_another_process_has_now_is_no_life(environ: dict[str, str]) -> None:
    """The row says when its process started; ours is another one of the same number."""
    sidecar_entry(
        SidecarFacts(app_id="reused", pid=os.getpid(), process_start=12, process_space=process_space()), environ
    ).write()

    (member,) = members(environ)

    assert (member.status, member.detail) == (Status.DEAD, f"process {os.getpid()} has ended")


def test_rows_of_a_version_that_left_no_word_for_tools_are_shown(environ: dict[str, str]) -> None:
    now = time.time()
    execute(
        environ,
        (HOSTS, ()),
        (OWN, ()),
        announced("beats", 1),
        older("beats", os.getpid(), now - 1e6),
        announced("silent", 60, address="127.0.0.1:6"),
        older("silent", os.getpid(), now - 1e6),  # a number that another process has now
        announced("gone", 60, address="127.0.0.1:7"),
        older("gone", 2**22 + 1, now),
    )

    found = members(environ, ask_them=False)

    assert names(found) == {"beats": "healthy", "silent": "dead", "gone": "dead"}
    assert all(member.facts.app_port == 8080 and member.is_ours for member in found)


def test_a_sidecar_of_another_container_is_judged_by_its_answer(environ: dict[str, str]) -> None:
    facts = SidecarFacts(
        app_id="far", pid=3, process_start=1, process_space="pid:[1]", http_host="127.0.0.1", http_port=1
    )
    sidecar_entry(facts, environ).write()

    (member,) = members(environ)

    assert (member.status, member.detail) == (Status.SILENT, "127.0.0.1:1: connection refused")


def test_one_process_with_two_rows_is_one_sidecar(environ: dict[str, str]) -> None:
    started = time.time()
    facts = SidecarFacts(
        app_id="orders",
        pid=os.getpid(),
        process_start=process_start(os.getpid()) or 0,
        process_space=process_space(),
        started=started,
        internal_address="127.0.0.1:5",
    )
    sidecar_entry(facts, environ).write()
    execute(environ, (HOSTS, ()), (OWN, ()), announced("orders", 1), older("orders", os.getpid(), started))

    (member,) = members(environ, ask_them=False)

    assert member.announced
    assert member.heartbeat_age_s is not None
    assert member.facts == facts


def test_an_app_is_meant_in_any_namespace_unless_one_is_given(environ: dict[str, str]) -> None:
    execute(
        environ,
        (HOSTS, ()),
        announced("a", 1, "staging"),
        ("INSERT INTO hosts VALUES ('2', '127.0.0.1:6', 'a', 'default', ?)", (int(time.time()),)),
        ("INSERT INTO hosts VALUES ('3', '127.0.0.1:7', 'b', 'default', ?)", (int(time.time()),)),
    )
    found = members(environ)

    assert len(matching(found, "a")) == 2
    assert [member.name for member in matching(found, "a.staging")] == ["a.staging"]
    assert matching(found, "a.prod") == []


def test_without_a_registry_nobody_runs(environ: dict[str, str], tmp_path: Path) -> None:
    assert members(environ) == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_registry_is_told_in_one_line(environ: dict[str, str]) -> None:
    path = find_registry(environ)
    path.parent.mkdir()
    path.write_bytes(b"\xff" * 5000)

    with pytest.raises(StartError, match=r"^cannot read the local registry .*: file is not a database \(26\)$"):
        members(environ)


def test_bytes_that_are_no_text_hide_nobody(environ: dict[str, str]) -> None:
    execute(
        environ,
        (HOSTS, ()),
        announced("good", 1),
        ("INSERT INTO hosts VALUES ('2', '127.0.0.1:6', CAST(x'ff61' AS TEXT), '', ?)", (int(time.time()),)),
    )

    assert set(names(members(environ))) == {"good", "\ufffda"}
