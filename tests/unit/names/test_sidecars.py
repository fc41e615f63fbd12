"""The table in which sidecars leave word for tools."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tieline.names.registry import find_registry, read_registry, sidecar_entry
from tieline.names.sidecars import (
    CUT,
    KEEP_DEAD_S,
    KEEP_LAST_WORD_S,
    LOST,
    SidecarFacts,
    parent_of,
    process_space,
    process_start,
    sweep_file,
)

ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of processes on Linux only")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path)}


def own(**changes: Any) -> SidecarFacts:
    pid = os.getpid()
    facts: dict[str, Any] = {
        "app_id": "orders",
        "pid": pid,
        "process_start": process_start(pid) or 0,
        "process_space": process_space(),
        "started": time.time(),
    }
    return SidecarFacts(**{**facts, **changes})


def rows(environ: dict[str, str]) -> list[SidecarFacts]:
    return read_registry(find_registry(environ)).sidecars


def test_what_was_written_is_read_and_gone_when_it_was_removed(environ: dict[str, str]) -> None:
    facts = own(http_port=3500, http_host="127.0.0.1", needs_token=True, internal_address="127.0.0.1:4")
    entry = sidecar_entry(facts, environ)

    entry.write()
    assert rows(environ) == [facts]
    entry.remove()
    entry.remove()

    assert rows(environ) == []


def test_a_registry_that_is_gone_is_not_made_again_to_remove_something_from_it(environ: dict[str, str]) -> None:
    entry = sidecar_entry(own(), environ)
    entry.write()
    shutil.rmtree(find_registry(environ).parent)

    entry.remove()

    assert not find_registry(environ).parent.exists()


def test_a_removal_that_is_quicker_than_the_writing_holds(environ: dict[str, str]) -> None:
    entry = sidecar_entry(own(), environ)

    entry.remove()
    entry.write()

    assert rows(environ) == []


def test_rows_of_other_versions_and_nonsense_are_read_as_far_as_they_go(environ: dict[str, str]) -> None:
    sidecar_entry(own(), environ).write()
    texts: list[Any] = [
        json.dumps({"app_id": "later", "pid": 5, "colour": "red", "started": 7, "http_port": "no number"}),
        json.dumps({"app_id": "", "pid": 5}),
        json.dumps({"app_id": "huge", "pid": 5, "started": 1e300, "http_port": 70000, "app_port": -1}),
        json.dumps({"app_id": "endless", "pid": 5, "started": 10**400, "grpc_port": 10**400}),
        '{"app_id": "never", "pid": 5, "started": NaN}',
        json.dumps({"app_id": "nobody", "pid": 1 << 70}),
        json.dumps([1]),
        "{",
        b"\xff\xfe",
        12,
        "x" * 70000,
    ]
    with sqlite3.connect(find_registry(environ)) as db:
        for number, text in enumerate(texts):
            db.execute("INSERT INTO tieline_sidecars VALUES (?, ?)", (f"x{number}", text))
    db.close()

    found = {facts.app_id: facts for facts in rows(environ)}

    assert set(found) == {"orders", "later", "huge", "endless", "never"}
    for name in ("huge", "endless", "never"):
        facts = found[name]
        assert (facts.started, facts.http_port, facts.grpc_port, facts.app_port) == (0.0, 0, 0, 0)
    assert (found["later"].pid, found["later"].started, found["later"].http_port) == (5, 7.0, 0)


@ONLY_LINUX
def test_a_process_has_ended_when_it_is_gone_or_another_one_has_its_number() -> None:
    child = subprocess.Popen(["sleep", "100"])
    facts = own(pid=child.pid, process_start=process_start(child.pid))
    assert not facts.has_ended()
    assert parent_of(child.pid) == os.getpid()

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert facts.has_ended()  # although its parent has not noticed yet
    child.wait()
    assert facts.has_ended()
    assert own(process_start=1).has_ended()
    assert not own(process_start=1, process_space="pid:[1]").has_ended()  # of another container, so nobody knows


@ONLY_LINUX
def test_word_of_processes_that_ended_long_ago_is_swept_by_the_next_one(environ: dict[str, str]) -> None:
    now = time.time()
    for app_id, start, ended, end in (
        ("old", 1, now - KEEP_DEAD_S - 5, LOST),
        ("lately", 2, now - 5, LOST),
        ("unnoticed", 3, 0.0, ""),
        ("said", 4, now - KEEP_LAST_WORD_S - 5, CUT),
        ("living", process_start(os.getpid()), 0.0, ""),
    ):
        facts = own(app_id=app_id, process_start=start, started=now - 20, ended=ended, end=end)
        sidecar_entry(facts, environ).write()
    sidecar_entry(own(app_id="boot", process_start=5, started=1.0), environ).write()

    sidecar_entry(own(app_id="new", pid=os.getppid(), process_start=process_start(os.getppid())), environ).write()

    left = {facts.app_id: facts for facts in rows(environ)}
    assert set(left) == {"lately", "unnoticed", "living", "new"}
    assert left["unnoticed"].end == LOST
    assert abs(left["unnoticed"].ended - now) < 60
    assert not left["living"].end


@ONLY_LINUX
def test_a_last_word_stays_and_rows_can_be_forgotten(environ: dict[str, str]) -> None:
    entry = sidecar_entry(own(app_id="cut"), environ)
    entry.write()

    entry.remove(last_word=CUT)
    (left,) = rows(environ)
    sweep_file(find_registry(environ), forgotten=[left])

    assert (left.app_id, left.end) == ("cut", CUT)
    assert rows(environ) == []


def test_a_registry_that_cannot_be_written_is_no_failure(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tieline").write_text("a file where the folder should be")

    entry = sidecar_entry(own(), environ)
    entry.write()
    entry.remove()


def test_a_locked_registry_is_waited_for_a_bounded_time(environ: dict[str, str]) -> None:
    sidecar_entry(own(app_id="first"), environ).write()
    holder = sqlite3.connect(find_registry(environ), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()

    entry = sidecar_entry(own(app_id="second", process_start=5), environ)
    entry.write()
    entry.remove()

    assert time.monotonic() - began < 5
    holder.execute("ROLLBACK")
    holder.close()
    assert [facts.app_id for facts in rows(environ)] == ["first"]


def test_the_registry_is_found_without_touching_anything(tmp_path: Path) -> None:
    home = tmp_path / "home"

    assert find_registry({"HOME": str(home), "TMPDIR": str(tmp_path)}) == home / ".local/state/tieline/registry.db"
    assert find_registry({"XDG_STATE_HOME": "/x"}) == Path("/x/tieline/registry.db")
    assert find_registry({"TMPDIR": str(tmp_path)}) == tmp_path / f"tieline-{os.getuid()}" / "registry.db"
    assert list(tmp_path.iterdir()) == []
