"""The local registry: whom it finds, whom it trusts, and how it stands up to trouble."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.names import DAPR_SCHEMA, facts, spawn, sql, target
from tieline import __version__
from tieline.errors import StartError, UnknownTarget
from tieline.model import Endpoint
from tieline.names.file_resolver import FileResolver
from tieline.names.registry import local_registry, read_instances, state_folder

AS_ROOT = os.getuid() == 0
FRESH = "CAST(strftime('%s', 'now') AS INTEGER)"

Make = Callable[..., FileResolver]

SIDECAR = """
import asyncio, sys
from tests.support.names import facts, spawn
from tieline.names.registry import local_registry

async def main(number, state):
    me = facts(app_id=f"app-{number}", internal_port=10_000 + number, pid=number)
    registry = local_registry(me, environ={"XDG_STATE_HOME": state}, spawn=spawn)
    print("ready", flush=True)
    sys.stdin.readline()
    await registry.start()
    await registry.announce()
    print("announced", flush=True)
    sys.stdin.readline()
    await registry.aclose()

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tieline" / "registry.db"


@pytest.fixture
async def make(environ: dict[str, str]) -> AsyncIterator[Make]:
    made = []

    def make(own: dict[str, Any] | None = None, **more: Any) -> FileResolver:
        registry = local_registry(facts(**own or {}), environ=environ, spawn=spawn, **more)
        made.append(registry)
        return registry

    yield make
    for registry in made:
        await registry.aclose()


@pytest.fixture
def umask() -> Iterator[None]:
    """The most careless one."""
    before = os.umask(0)
    yield
    os.umask(before)


def add(path: Path, address: str, app_id: str, namespace: str = "") -> None:
    sql(path, (f"REPLACE INTO hosts VALUES (?, ?, ?, ?, {FRESH})", (address, address, app_id, namespace)))


async def announced(registry: FileResolver) -> FileResolver:
    await registry.start()
    await registry.announce()
    return registry


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.rule("N-53", "N-5")
async def test_a_sidecar_is_registered_at_loopback_with_its_namespace_and_ports(path: Path, make: Make) -> None:
    await announced(make({"namespace": "blue"}))

    assert sql(path, "SELECT address, app_id, namespace FROM hosts") == [("127.0.0.1:3502", "orders", "blue")]
    (instance,) = read_instances(path)
    assert (instance.app_id, instance.namespace, instance.address) == ("orders", "blue", "127.0.0.1:3502")
    assert (instance.http_port, instance.grpc_port, instance.internal_port) == (3500, 50001, 3502)
    assert (instance.app_port, instance.pid, instance.started) == (8080, 4711, facts().started)
    assert instance.version == __version__


@pytest.mark.rule("N-36")
async def test_nothing_is_left_of_a_sidecar_that_stopped(path: Path, make: Make) -> None:
    registry = await announced(make())

    await registry.aclose()

    assert sql(path, "SELECT * FROM hosts UNION ALL SELECT registration_id,1,1,1,1 FROM tieline_instances") == []
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["registry.db"]


@pytest.mark.rule("N-34")
async def test_a_lost_row_is_written_again_in_both_tables(path: Path, make: Make) -> None:
    registry = await announced(make())
    sql(path, "DELETE FROM hosts")

    await registry.renew()
    await registry.renew()

    assert len(sql(path, "SELECT * FROM hosts JOIN tieline_instances USING (registration_id)")) == 1
    assert len(sql(path, "SELECT * FROM tieline_instances")) == 1
    sql(path, "DELETE FROM tieline_instances")
    await registry.renew()
    assert len(read_instances(path)) == 1


@pytest.mark.rule("N-51", "N-53")
async def test_a_call_reaches_the_namespace_it_asks_for_or_a_peer_that_does_not_say(path: Path, make: Make) -> None:
    registry = await announced(make())
    add(path, "127.0.0.1:1", "callee", "default")
    add(path, "127.0.0.1:2", "callee", "green")
    add(path, "127.0.0.1:3", "daprd", "")

    assert await registry.resolve(target("callee")) == [Endpoint("127.0.0.1", 1)]
    assert await registry.resolve(target("callee", "green")) == [Endpoint("127.0.0.1", 2)]
    assert await registry.resolve(target("daprd", "green")) == [Endpoint("127.0.0.1", 3)]
    with pytest.raises(UnknownTarget, match=r"^couldn't find service: callee$"):
        await registry.resolve(target("callee", "red"))


@pytest.mark.rule("N-56")
async def test_a_file_that_daprd_made_is_shared(path: Path, make: Make) -> None:
    path.parent.mkdir(mode=0o700, parents=True)
    sql(path, *DAPR_SCHEMA, "INSERT INTO metadata VALUES ('nr-migrations', '1')")
    add(path, "127.0.0.1:3512", "callee")

    registry = await announced(make())

    assert await registry.resolve(target("callee")) == [Endpoint("127.0.0.1", 3512)]
    query = f"SELECT address FROM hosts WHERE app_id = 'orders' AND {FRESH} - last_update < 5"
    assert sql(path, query) == [("127.0.0.1:3502",)]


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1:80", "evil.example:80", "localhost:80", "0.0.0.0:80", "[fe80::1]:80", "2130706433:80", "127.1:80"],
)
async def test_only_ip_literals_of_this_host_are_taken_from_it(path: Path, make: Make, address: str) -> None:
    registry = await announced(make())
    add(path, address, "callee")

    with pytest.raises(UnknownTarget):
        await registry.resolve(target("callee"))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "192.168.1.7"])
async def test_loopback_and_own_addresses_are_taken_from_it(path: Path, make: Make, address: str) -> None:
    registry = await announced(make(own_addresses=["192.168.1.7"]))
    add(path, str(Endpoint(address, 80)), "callee")

    assert await registry.resolve(target("callee")) == [Endpoint(address, 80)]


@pytest.mark.usefixtures("umask")
async def test_folder_and_files_are_this_users_alone(path: Path, make: Make) -> None:
    await announced(make())

    assert mode(path.parent) == 0o700
    assert {entry.name: mode(entry) for entry in path.parent.iterdir()} == {
        "registry.db": 0o600,
        "registry.db-wal": 0o600,
        "registry.db-shm": 0o600,
    }


async def test_a_folder_and_a_file_open_to_others_are_closed_to_them(path: Path, make: Make) -> None:
    path.parent.mkdir(mode=0o777, parents=True)
    path.parent.chmod(0o777)
    path.touch()
    path.chmod(0o666)

    await announced(make())

    assert (mode(path.parent), mode(path)) == (0o700, 0o600)


@pytest.mark.parametrize("what", ["folder is a link", "folder is a file", "file is a link", "file is a folder"])
async def test_what_cannot_be_trusted_or_used_turns_the_registry_off_with_one_warning(
    tmp_path: Path, path: Path, make: Make, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    path.parent.parent.mkdir()
    if what == "folder is a link":
        elsewhere.mkdir()
        path.parent.symlink_to(elsewhere)
    elif what == "folder is a file":
        path.parent.touch()
    elif what == "file is a link":
        path.parent.mkdir(mode=0o700)
        elsewhere.touch()
        path.symlink_to(elsewhere)
    else:
        path.mkdir(parents=True)

    registry = await announced(make())
    await registry.renew()

    with pytest.raises(Exception, match=r"state folder|is not used"):
        await registry.resolve(target("callee"))
    assert len(caplog.records) == 1
    assert str(path.parent) in caplog.text
    assert not elsewhere.exists() or not elsewhere.is_dir() or list(elsewhere.iterdir()) == []
    with pytest.raises(StartError):
        read_instances(path)


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["folder", "file"])
async def test_what_belongs_to_another_user_is_not_used(
    path: Path, make: Make, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    path.parent.mkdir(mode=0o700, parents=True)
    path.touch()
    os.chown(path.parent if whose == "folder" else path, 12345, -1)

    await announced(make())

    assert "belongs to user 12345, not to 0" in caplog.text
    assert path.stat().st_size == 0


async def test_a_registry_that_becomes_usable_is_used(path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.parent.touch()
    registry = await announced(make())
    assert len(caplog.records) == 1

    path.parent.parent.unlink()
    await registry.renew()

    assert len(read_instances(path)) == 1


async def test_a_damaged_registry_is_put_aside_and_everybody_comes_back(path: Path, make: Make) -> None:
    one, two = make(), make({"app_id": "billing", "internal_port": 3512})
    await announced(one)
    await announced(two)
    for name in ("registry.db", "registry.db-wal"):
        (path.parent / name).write_bytes(b"\xff" * 20_000)

    for _ in range(2):
        await one.renew()
        await two.renew()

    assert await one.resolve(target("billing")) == [Endpoint("127.0.0.1", 3512)]
    assert await two.resolve(target("orders")) == [Endpoint("127.0.0.1", 3502)]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_deleted_folder_is_made_again(path: Path, make: Make) -> None:
    registry = await announced(make())
    for entry in path.parent.iterdir():
        entry.unlink()
    path.parent.rmdir()

    await registry.renew()

    assert len(read_instances(path)) == 1
    assert mode(path.parent) == 0o700


@pytest.mark.rule("N-32")
def test_ten_sidecars_that_open_a_fresh_file_at_once_all_register(environ: dict[str, str], path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])}
    sidecars = [
        subprocess.Popen(
            [sys.executable, "-c", SIDECAR, str(number), environ["XDG_STATE_HOME"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for number in range(10)
    ]
    try:
        assert [_answer(sidecar) for sidecar in sidecars] == ["ready\n"] * 10
        for sidecar in sidecars:
            _tell(sidecar)
        assert [_answer(sidecar) for sidecar in sidecars] == ["announced\n"] * 10

        names = sorted(instance.app_id for instance in read_instances(path))

        assert names == [f"app-{number}" for number in range(10)]
    finally:
        for sidecar in sidecars:
            sidecar.communicate("\n" * 2, timeout=30)
    assert [sidecar.returncode for sidecar in sidecars] == [0] * 10
    assert read_instances(path) == []


def _tell(sidecar: subprocess.Popen[str]) -> None:
    assert sidecar.stdin is not None
    sidecar.stdin.write("\n")
    sidecar.stdin.flush()


def _answer(sidecar: subprocess.Popen[str]) -> str:
    assert sidecar.stdout is not None
    return sidecar.stdout.readline()


# --- the state folder ---


def test_the_state_folder_is_where_xdg_says(tmp_path: Path) -> None:
    assert state_folder({"XDG_STATE_HOME": str(tmp_path), "HOME": "/nowhere"}) == tmp_path / "tieline"


@pytest.mark.parametrize("xdg", [{}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}])
def test_without_xdg_it_is_in_the_home(tmp_path: Path, xdg: dict[str, str]) -> None:
    assert state_folder({"HOME": str(tmp_path)} | xdg) == tmp_path / ".local" / "state" / "tieline"


@pytest.mark.parametrize("home", ["", "{file}/home"])
def test_without_a_usable_home_it_is_this_users_own_among_the_temporary_files(tmp_path: Path, home: str) -> None:
    (tmp_path / "file").touch()
    home = home.format(file=tmp_path / "file")

    folder = state_folder({"HOME": home, "TMPDIR": str(tmp_path)})

    assert folder == tmp_path / f"tieline-{os.getuid()}"
    assert mode(folder) == 0o700


def test_a_temporary_folder_that_somebody_put_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"tieline-{os.getuid()}").symlink_to(tmp_path / "theirs")

    with pytest.raises(StartError, match=r"cannot use .* as state folder"):
        state_folder({"TMPDIR": str(tmp_path)})


def test_a_state_folder_that_was_asked_for_and_cannot_be_used_is_not_replaced_by_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StartError, match=r"cannot use .* as state folder: .*; set XDG_STATE_HOME"):
        state_folder({"XDG_STATE_HOME": str(tmp_path / "file"), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)})


# --- listing ---


def test_without_a_registry_nobody_is_listed(path: Path) -> None:
    assert read_instances(path) == []


async def test_daprd_processes_are_listed_and_dead_sidecars_are_not(path: Path, make: Make) -> None:
    await announced(make())
    add(path, "127.0.0.1:1", "daprd")
    add(path, "127.0.0.1:2", "dead")
    sql(path, f"UPDATE hosts SET last_update = {FRESH} - 60 WHERE app_id = 'dead'")

    assert [(row.app_id, row.http_port, row.version) for row in read_instances(path)] == [
        ("daprd", 0, ""),
        ("orders", 3500, __version__),
    ]


async def test_a_file_of_daprd_alone_can_be_listed(path: Path) -> None:
    path.parent.mkdir(parents=True)
    sql(path, *DAPR_SCHEMA)
    add(path, "127.0.0.1:1", "daprd")

    assert [row.app_id for row in read_instances(path)] == ["daprd"]


def test_a_damaged_file_cannot_be_listed_and_that_is_said_in_one_line(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff" * 5000)

    with pytest.raises(
        StartError, match=r"^cannot read the local registry .*registry.db: file is not a database \(26\)$"
    ):
        read_instances(path)
