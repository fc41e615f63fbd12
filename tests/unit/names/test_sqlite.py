"""The ``sqlite`` resolver's configuration, as recorded from a running ``daprd``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.names import facts, spawn, sql, target
from tieline.errors import ConfigError, StartError, UnknownTarget
from tieline.names.builtin import RESOLVERS
from tieline.names.hosts_file import HostsSettings
from tieline.names.resolver import create
from tieline.names.sqlite import parse_configuration, parse_connection_string

DB = "/tmp/names.db"


@dataclass
class Spec:
    component: str = "sqlite"
    version: str = ""
    configuration: object = None


def settings(**keys: Any) -> HostsSettings:
    return parse_configuration({"connectionString": DB, **keys}).settings


@pytest.mark.rule("N-30", "N-4")
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {}),
        (
            {"tableName": "my_hosts", "metadataTableName": "My_Meta2"},
            {"hosts_table": "my_hosts", "metadata_table": "My_Meta2"},
        ),
        ({"TABLENAME": "upper"}, {"hosts_table": "upper"}),
        ({"table_name": "x", "unknownKey": "x"}, {}),
        ({"updateInterval": "10s"}, {"update_interval_s": 10}),
        ({"updateInterval": "2s"}, {"update_interval_s": 2}),
        ({"updateInterval": 7}, {"update_interval_s": 7}),
        ({"updateInterval": "7"}, {"update_interval_s": 7}),
        ({"updateInterval": "3s", "timeout": "2s"}, {"update_interval_s": 3, "timeout_s": 2}),
        ({"timeout": "1"}, {}),
        ({"timeout": 1}, {}),
        ({"timeout": "1s"}, {}),
        ({"timeoutInSeconds": 2}, {"timeout_s": 2}),
        ({"busyTimeout": "2s"}, {"busy_timeout_s": 2}),
        ({"busyTimeout": 100}, {"busy_timeout_s": 100}),
        ({"busyTimeout": "0"}, {"busy_timeout_s": 0}),
        ({"busyTimeout": "-1s"}, {"busy_timeout_s": 0}),
        ({"disableWAL": True}, {"journal_mode": "DELETE"}),
        ({"disableWAL": "true"}, {"journal_mode": "DELETE"}),
        ({"disableWAL": "maybe"}, {}),
        ({"cleanupInterval": "0"}, {"cleanup_interval_s": 0}),
        ({"cleanupInterval": "-1s"}, {"cleanup_interval_s": -1}),
        ({"cleanupIntervalInSeconds": 30}, {"cleanup_interval_s": 30}),
        ({"cleanupInterval": "90m"}, {"cleanup_interval_s": 5400}),
        ({"cleanupInterval": "1h0m0.5s"}, {"cleanup_interval_s": 3600.5}),
    ],
)
def test_keys_that_daprd_takes_mean_the_same(keys: dict[str, object], expected: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {
        "hosts_table": "hosts",
        "metadata_table": "metadata",
        "timeout_s": 1.0,
        "busy_timeout_s": 0.8,
        "update_interval_s": 5,
        "cleanup_interval_s": 3600.0,
        "journal_mode": "WAL",
    }
    assert settings(**keys) == HostsSettings(**(defaults | expected))


@pytest.mark.rule("N-30", "N-4")
@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tableName": "a-b"}, "invalid identifier for table name: a-b"),
        ({"tableName": "a b"}, "invalid identifier for table name: a b"),
        ({"tableName": "a\n"}, "invalid identifier for table name: a\n"),
        ({"tableName": ""}, "invalid identifier for table name: "),
        ({"metadataTableName": "a;b"}, "invalid identifier for metadata table name: a;b"),
        ({"updateInterval": "5500ms"}, "update interval must not contain fractions of seconds"),
        ({"updateInterval": "1999ms"}, "update interval must not contain fractions of seconds"),
        ({"updateInterval": "1s"}, "update interval must be at least 1s greater than timeout"),
        ({"updateInterval": "-5s"}, "update interval must be at least 1s greater than timeout"),
        ({"updateInterval": 0}, "update interval must be at least 1s greater than timeout"),
        ({"updateInterval": "3s", "timeout": "2500ms"}, "update interval must be at least 1s greater than timeout"),
        ({"updateInterval": "abc"}, "error decoding 'updateInterval': time: invalid duration \"abc\""),
        ({"timeout": "500ms"}, "invalid value for 'timeout': must be greater than 1s"),
        ({"timeout": "0"}, "invalid value for 'timeout': must be greater than 1s"),
        ({"timeout": "x"}, "error decoding 'timeout': time: invalid duration \"x\""),
        ({"busyTimeout": "zz"}, "error decoding 'busyTimeout': time: invalid duration \"zz\""),
        ({"cleanupInterval": "x"}, "error decoding 'cleanupInterval': time: invalid duration \"x\""),
        ({"timeout": ["1s"]}, "input object cannot be cast to map[string]string: 'timeout' is list, not text"),
    ],
)
def test_keys_that_daprd_refuses_are_refused_in_its_words(keys: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**keys)

    assert str(caught.value).startswith(text)


@pytest.mark.rule("N-4", "N-30")
@pytest.mark.parametrize(
    ("configuration", "text"),
    [
        (None, "input object cannot be cast to map[string]string: it is nothing"),
        (["a"], "input object cannot be cast to map[string]string: it is list"),
        ("a", "input object cannot be cast to map[string]string: it is str"),
        ({}, "missing connection string"),
        ({"connectionString": ""}, "missing connection string"),
    ],
)
def test_a_configuration_without_a_connection_string_is_refused(configuration: object, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_configuration(configuration)

    assert str(caught.value).startswith(text)


@pytest.mark.rule("N-30")
def test_url_is_another_word_for_the_connection_string() -> None:
    assert parse_configuration({"URL": DB}).place.path == DB
    assert parse_configuration({"url": "/b", "connectionString": "/a"}).place.path == "/a"


@pytest.mark.rule("N-31")
@pytest.mark.parametrize(
    ("text", "uri", "path", "mode", "pragmas"),
    [
        (DB, f"file:{DB}", DB, "WAL", ()),
        (f"file:{DB}", f"file:{DB}", DB, "WAL", ()),
        (f"file://{DB}", f"file://{DB}", DB, "WAL", ()),
        (f"file://localhost{DB}", f"file://localhost{DB}", DB, "WAL", ()),
        (f"file:{DB}?cache=private", f"file:{DB}?cache=private", DB, "WAL", ()),
        (f"file:{DB}?_txlock=immediate", f"file:{DB}", DB, "WAL", ()),
        (f"file:{DB}?_pragma=synchronous(1)", f"file:{DB}", DB, "WAL", ("synchronous(1)",)),
        (f"file:{DB}?mode=ro", f"file:{DB}?mode=ro", DB, "DELETE", ()),
        (f"file:{DB}?immutable=1", f"file:{DB}?immutable=1", DB, "DELETE", ()),
        (":memory:", "file::memory:?cache=shared", "", "MEMORY", ()),
        ("file::memory:", "file::memory:?cache=shared", "", "MEMORY", ()),
        ("file:x?mode=memory", "file:x?mode=memory&cache=shared", "", "MEMORY", ()),
        ("not a % path", "file:not a % path", "not a % path", "WAL", ()),
        ("file:a%20b", "file:a%20b", "a b", "WAL", ()),
    ],
)
def test_connection_strings(text: str, uri: str, path: str, mode: str, pragmas: tuple[str, ...]) -> None:
    place, journal_mode, found = parse_connection_string(text)

    assert (place.uri, place.path, journal_mode, found) == (uri, path, mode, pragmas)


@pytest.mark.rule("N-31")
@pytest.mark.parametrize("pragma", ["busy_timeout(5)", "journal_mode(DELETE)", "foreign_keys(1)", "JOURNAL_MODE=WAL"])
def test_a_pragma_that_has_a_key_of_its_own_is_refused(pragma: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_connection_string(f"file:{DB}?_pragma={pragma}")

    name = pragma.lower().replace("=", "(").partition("(")[0]
    assert str(caught.value).startswith(f"found forbidden option '_pragma={name}' in the connection string")


def test_a_pragma_cannot_carry_other_sql() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_connection_string(f"file:{DB}?_pragma=synchronous(1); DROP TABLE hosts")


@pytest.mark.rule("N-31")
@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (f"file:{DB}?_txlock=exclusive", "_txlock different from the recommended value 'immediate'"),
        (f"file:{DB}?_txlock=deferred", "_txlock different from the recommended value 'immediate'"),
        (":memory:", "Service invocation across different apps will not work"),
        (DB, ""),
    ],
)
def test_what_is_unwise_is_warned_of(text: str, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    parse_connection_string(text)

    assert len(caplog.records) == bool(warning)
    assert warning in caplog.text


@given(st.text())
def test_any_connection_string_is_read_or_refused(text: str) -> None:
    try:
        place, _, _ = parse_connection_string(text)
    except ConfigError:
        assert "_pragma=" in text
    else:
        assert place.uri.startswith("file:")


@pytest.mark.rule("N-33", "N-5", "N-10")
@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.77.0.1", "10.77.0.1:3502"),
        ("127.0.0.1", "127.0.0.1:3502"),
        ("localhost", "localhost:3502"),
        ("[::1]", "[::1]:3502"),
        ("fd00::7", "[fd00::7]:3502"),
    ],
)
async def test_the_host_address_is_registered_with_an_empty_namespace(tmp_path: Path, host: str, address: str) -> None:
    path = tmp_path / "n.db"
    spec = Spec(configuration={"connectionString": str(path)})
    resolver = create(spec, facts(host_address=host, namespace="blue"), spawn, RESOLVERS)

    await resolver.start()
    await resolver.announce()

    assert sql(path, "SELECT address, app_id, namespace FROM hosts") == [(address, "orders", "")]
    assert [str(endpoint) for endpoint in await resolver.resolve(target("orders"))] == [address]
    await resolver.aclose()
    assert sql(path, "SELECT * FROM hosts") == []


@pytest.mark.rule("N-17", "N-33")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"app_id": ""}, "name is missing"),
        ({"host_address": ""}, "address is missing"),
        ({"internal_port": 0}, "port is missing or invalid"),
    ],
)
def test_a_missing_fact_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create(Spec(configuration={"url": DB}), facts(**change), spawn, RESOLVERS)

    assert f"for nr (sqlite/v1): {text};" in str(caught.value)


@pytest.mark.rule("N-2", "N-31")
@pytest.mark.parametrize("connection_string", ["{dir}/no/such/dir/n.db", "{dir}", "file:{dir}/n.db?mode=ro"])
async def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path, connection_string: str) -> None:
    spec = Spec("SQLite", "v1", {"connectionString": connection_string.format(dir=tmp_path)})
    resolver = create(spec, facts(), spawn, RESOLVERS)

    with pytest.raises(StartError) as caught:
        await resolver.start()

    text = str(caught.value)
    assert text.startswith(
        "[INIT_COMPONENT_FAILURE]: initialization error occurred for nr (SQLite/v1): failed to perform migrations:"
        " failed to get a connection from the pool: unable to open database file (14); see that "
    )
    assert "\n" not in text
    await resolver.aclose()


@pytest.mark.rule("N-31")
async def test_a_database_opened_only_for_reading_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "n.db"
    sql(path, "CREATE TABLE t(x)")
    resolver = create(Spec(configuration={"url": f"file:{path}?mode=ro"}), facts(), spawn, RESOLVERS)

    with pytest.raises(StartError, match=r"attempt to write a readonly database \(8\)"):
        await resolver.start()
    await resolver.aclose()


@pytest.mark.rule("N-35")
async def test_an_unknown_id_has_the_text_of_daprs_resolver(tmp_path: Path) -> None:
    resolver = create(Spec(configuration={"url": str(tmp_path / "n.db")}), facts(), spawn, RESOLVERS)
    await resolver.start()

    with pytest.raises(UnknownTarget, match=r"^no host found with the given ID$"):
        await resolver.resolve(target("nobody"))
    await resolver.aclose()


@pytest.mark.rule("N-31")
async def test_resolvers_in_one_process_can_share_a_database_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    spec = Spec(configuration={"url": ":memory:"})
    one = create(spec, facts(app_id="one", internal_port=1), spawn, RESOLVERS)
    two = create(spec, facts(app_id="two", internal_port=2), spawn, RESOLVERS)
    for resolver in (one, two):
        await resolver.start()
        await resolver.announce()

    assert [str(endpoint) for endpoint in await one.resolve(target("two"))] == ["10.77.0.1:2"]
    for resolver in (one, two):
        await resolver.aclose()
