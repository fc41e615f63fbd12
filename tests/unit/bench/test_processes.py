"""The command lines of the bench."""

from pathlib import Path

import pytest

from bench import envoy
from bench.errors import BenchError
from bench.processes import PORT_NAMES, Ours

PORTS = {"app": 9000, **{name: 9001 + number for number, name in enumerate(PORT_NAMES)}}


def test_a_launcher_gets_the_flags_of_its_role() -> None:
    pair = Ours("tieline sidecar", {})

    callee = pair.command("callee", PORTS, Path(), long_bodies=False)
    caller = pair.command("caller", PORTS, Path(), long_bodies=True)

    assert callee[:6] == ["tieline", "sidecar", "--app-id", "callee", "--app-port", "9000"]
    assert caller[2:6] == ["--app-id", "caller", "--dapr-http-port", str(PORTS["caller_http"])]
    assert "--app-port" not in caller
    assert caller[-2:] == ["--max-body-size", "512Mi"]


def test_a_template_is_the_whole_command() -> None:
    pair = Ours("", {"caller": "proxy 'a b' {caller_http} {callee_internal}"})

    command = pair.command("caller", PORTS, Path(), long_bodies=True)

    assert command == ["proxy", "a b", str(PORTS["caller_http"]), str(PORTS["callee_internal"])]


def test_an_unknown_placeholder_names_those_that_exist() -> None:
    with pytest.raises(BenchError, match=r"--ours-caller: bad placeholder 'port'.*\{app\}.*\{caller_http\}"):
        Ours("", {"caller": "proxy {port}"}).command("caller", PORTS, Path(), long_bodies=False)


def test_the_two_envoys_speak_http2_to_each_other_and_http1_to_the_app() -> None:
    caller = str(envoy.caller_config(listen_port=1, callee_port=2))
    callee = str(envoy.callee_config(listen_port=2, app_port=3))

    assert "'explicit_http_config': {'http2_protocol_options'" in caller
    assert "'codec_type': 'HTTP2'" in callee
    assert "'http_protocol_options': {}" in callee
