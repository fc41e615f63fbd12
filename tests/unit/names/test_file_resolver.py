"""A resolver on a shared file: its heartbeat, and what calls see while the file is locked, gone or damaged."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.names import NOW, Clock, Pulse, spawn, sql, target, write_row
from tieline.errors import ResolverFailed, UnknownTarget
from tieline.model import Endpoint
from tieline.names.file_resolver import FileResolver, parse_address
from tieline.names.hosts_file import HostRow, HostsFile, HostsSettings, Place

SETTINGS = HostsSettings(busy_timeout_s=0, journal_mode="DELETE")
CALLEE = Endpoint("127.0.0.1", 3512)

Make = Callable[..., FileResolver]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse() -> Pulse:
    return Pulse()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "names.db"


@pytest.fixture
async def make(path: Path, clock: Clock, pulse: Pulse) -> AsyncIterator[Make]:
    made = []

    def make(**more: Any) -> FileResolver:
        place = Place(f"file:{path}", str(path))
        row = HostRow("orders", "", "127.0.0.1:3502")
        file = HostsFile(lambda: place, SETTINGS, row, clock=clock, monotonic=clock, sleep=clock.sleep)
        options: dict[str, Any] = {"namespace": "default", "heartbeat_s": 4.0, "unknown_text": "no {}".format} | more
        resolver = FileResolver("names file", file, spawn=spawn, sleep=pulse.sleep, clock=clock, **options)
        made.append(resolver)
        return resolver

    yield make
    for resolver in made:
        await resolver.aclose()


def locked(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    return db


def last_update(path: Path) -> list[tuple[int]]:
    return sql(path, "SELECT last_update FROM hosts WHERE app_id = 'orders'")


async def test_work_on_the_file_is_done_by_one_thread_of_its_own(make: Make) -> None:
    before = set(threading.enumerate())
    resolver = make()
    assert set(threading.enumerate()) == before

    await resolver.start()
    await asyncio.gather(*(resolver.known() for _ in range(20)))

    assert len(set(threading.enumerate()) - before) == 1


@pytest.mark.rule("N-7")
async def test_nothing_is_registered_before_it_is_announced_or_after_it_is_withdrawn(path: Path, make: Make) -> None:
    resolver = make()
    await resolver.start()
    assert last_update(path) == []

    await resolver.announce()
    await resolver.announce()
    assert last_update(path) == [(NOW,)]

    await resolver.withdraw()
    await resolver.withdraw()
    assert last_update(path) == []
    await resolver.announce()
    assert last_update(path) == [(NOW,)]


class SlowFile(HostsFile):
    """Registers once it may."""

    entered = threading.Event()
    may = threading.Event()

    def register(self) -> None:
        self.entered.set()
        self.may.wait()
        super().register()


async def test_an_announcement_that_is_broken_off_is_withdrawn_all_the_same(path: Path, clock: Clock) -> None:
    """Its row is written only after the shutdown began: a thread cannot be called back."""
    place = Place(f"file:{path}", str(path))
    file = SlowFile(lambda: place, SETTINGS, HostRow("orders", "", "127.0.0.1:3502"), clock=clock, monotonic=clock)
    resolver = FileResolver("file", file, namespace="default", heartbeat_s=4.0, spawn=spawn, unknown_text=str)
    await resolver.start()
    announcement = asyncio.create_task(resolver.announce())
    await asyncio.to_thread(file.entered.wait)

    announcement.cancel()
    withdrawal = asyncio.create_task(resolver.withdraw())
    await asyncio.wait([announcement])
    file.may.set()
    await withdrawal
    await resolver.known()  # goes to the same thread, so all that went there before is done

    assert last_update(path) == []
    await resolver.aclose()


async def test_an_id_that_is_no_text_is_unknown(make: Make) -> None:
    resolver = make()
    await resolver.start()

    for app_id, namespace in (("\udcff", "default"), ("orders", "\udcff")):
        with pytest.raises(UnknownTarget):
            await resolver.resolve(target(app_id, namespace))


@pytest.mark.rule("N-34")
async def test_the_heart_beats_at_its_interval(path: Path, make: Make, clock: Clock, pulse: Pulse) -> None:
    resolver = make()
    await resolver.start()
    await resolver.announce()

    clock.now += 4
    await pulse.beat()
    assert last_update(path) == [(NOW + 4,)]
    clock.now += 4
    await pulse.beat()
    assert last_update(path) == [(NOW + 8,)]
    assert pulse.asked == [4.0, 4.0, 4.0]


@pytest.mark.rule("N-34")
async def test_a_lost_row_is_registered_again_and_the_sidecar_lives_on(
    path: Path, make: Make, pulse: Pulse, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = make()
    await resolver.start()
    await resolver.announce()
    sql(path, "DELETE FROM hosts")

    await pulse.beat()

    assert last_update(path) == [(NOW,)]
    assert "registration in the names file was lost; registered again" in caplog.text


@pytest.mark.rule("N-35")
async def test_while_the_file_is_locked_calls_go_on_with_the_last_known_addresses(
    path: Path, make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tieline.names")
    resolver = make()
    await resolver.start()
    await resolver.announce()
    write_row(path, "127.0.0.1:3512", "callee")
    assert await resolver.resolve(target("callee")) == [CALLEE]

    other = locked(path)
    for _ in range(3):
        assert await resolver.resolve(target("callee")) == [CALLEE]
        await resolver.renew()
    with pytest.raises(ResolverFailed, match=r"failed to look up address: database is locked \(5\) \(SQLITE_BUSY\)"):
        await resolver.resolve(target("never-asked-before"))
    clock.now += 61
    with pytest.raises(ResolverFailed):
        await resolver.resolve(target("callee"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    other.close()
    await resolver.renew()
    assert list(await resolver.resolve(target("orders"))) == [Endpoint("127.0.0.1", 3502)]
    assert [record.getMessage() for record in caplog.records][1:] == ["names file: works again"]


async def test_a_deleted_file_is_made_again_and_calls_go_on_meanwhile(
    path: Path, make: Make, clock: Clock, pulse: Pulse
) -> None:
    resolver = make()
    await resolver.start()
    await resolver.announce()
    write_row(path, "127.0.0.1:3512", "callee")
    await resolver.resolve(target("callee"))

    path.unlink()

    assert await resolver.resolve(target("callee")) == [CALLEE]
    await pulse.beat()
    assert last_update(path) == [(NOW,)]
    clock.now += 5
    with pytest.raises(UnknownTarget):
        await resolver.resolve(target("callee"))


async def test_a_damaged_file_is_used_again_once_it_is_repaired(
    path: Path, make: Make, pulse: Pulse, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = make()
    await resolver.start()
    await resolver.announce()
    write_row(path, "127.0.0.1:3512", "callee")
    await resolver.resolve(target("callee"))

    path.write_bytes(b"\xff" * 16384)
    assert await resolver.resolve(target("callee")) == [CALLEE]
    await pulse.beat()
    assert await resolver.resolve(target("callee")) == [CALLEE]
    assert len(caplog.records) == 1
    assert path.read_bytes() == b"\xff" * 16384

    path.unlink()
    await pulse.beat()
    assert last_update(path) == [(NOW,)]


async def test_a_file_that_cannot_be_written_still_answers_and_is_warned_of_once(
    path: Path, make: Make, pulse: Pulse, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = make()
    await resolver.start()
    refusal = "BEGIN SELECT RAISE(ABORT, 'attempt to write a readonly database'); END"
    write_row(path, "127.0.0.1:3512", "callee")
    sql(path, f"CREATE TRIGGER a BEFORE INSERT ON hosts {refusal}")

    await resolver.announce()
    await pulse.beat()
    assert await resolver.resolve(target("callee")) == [CALLEE]
    assert len(caplog.records) == 1
    assert "attempt to write a readonly database" in caplog.text

    sql(path, "DROP TRIGGER a")
    await pulse.beat()
    assert last_update(path) == [(NOW,)]


@pytest.mark.rule("N-11", "N-35")
async def test_addresses_that_cannot_be_dialled_are_left_out(path: Path, make: Make) -> None:
    resolver = make()
    await resolver.start()
    for address in ("", "127.0.0.1", "[::1]:3512", "localhost:3512", "::1:3512", "h:0", "h:65536", "h:x", ":1"):
        write_row(path, address, "callee")

    assert sorted(await resolver.resolve(target("callee"))) == [Endpoint("::1", 3512), Endpoint("localhost", 3512)]


@pytest.mark.rule("N-11")
@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("", "resolver returned empty address for app id default/callee"),
        ("127.0.0.1", "address 127.0.0.1: no host and port"),
    ],
)
async def test_an_app_whose_only_address_is_none_is_not_called_unknown(
    path: Path, make: Make, address: str, text: str
) -> None:
    resolver = make()
    await resolver.start()
    write_row(path, address, "callee")

    with pytest.raises(ResolverFailed) as caught:
        await resolver.resolve(target("callee"))
    assert caught.value.text == text


async def test_an_address_that_may_not_be_dialled_makes_no_app_known(path: Path, make: Make) -> None:
    resolver = make(accept=lambda endpoint: endpoint.host != "10.0.0.1")
    await resolver.start()
    write_row(path, "10.0.0.1:3512", "callee")

    with pytest.raises(UnknownTarget, match=r"^no callee$"):
        await resolver.resolve(target("callee"))


@pytest.mark.rule("N-51")
async def test_names_of_other_namespaces_are_shown_as_they_are_called(path: Path, make: Make) -> None:
    resolver = make()
    await resolver.start()
    write_row(path, "127.0.0.1:1", "here", namespace="default")
    write_row(path, "127.0.0.1:2", "there", namespace="green")
    write_row(path, "127.0.0.1:3", "daprd")

    assert await resolver.known() == ["daprd", "here", "there.green"]


async def test_closing_is_idempotent_and_also_works_unstarted(path: Path, make: Make) -> None:
    unused = make()
    await unused.aclose()
    assert not path.exists()

    resolver = make()
    await resolver.start()
    await resolver.announce()
    await resolver.aclose()
    await resolver.aclose()
    await resolver.withdraw()
    await resolver.announce()

    with pytest.raises(ResolverFailed, match="closed"):
        await resolver.resolve(target("orders"))
    assert await resolver.known() == []
    assert last_update(path) == []


async def test_a_caller_that_goes_away_leaves_the_file_usable(path: Path, make: Make) -> None:
    resolver = make()
    await resolver.start()
    await resolver.announce()

    for _ in range(5):
        call = spawn(_discard(resolver), name="call")
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

    assert await resolver.resolve(target("orders")) == [Endpoint("127.0.0.1", 3502)]


async def _discard(resolver: FileResolver) -> None:
    await resolver.resolve(target("orders"))


@given(st.one_of(st.text(), st.from_regex(r"\[?[0-9a-z.:]*\]?:[0-9]{1,6}", fullmatch=True)))
def test_an_address_is_parsed_into_what_it_renders_as_or_refused(text: str) -> None:
    endpoint = parse_address(text)

    if endpoint is not None:
        assert 0 < endpoint.port < 65536
        assert endpoint.host
        assert parse_address(str(endpoint)) == endpoint
