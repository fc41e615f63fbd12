"""Flags of ``tieline run`` become a plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tieline.cli import run
from tieline.cli.supervise import Plan, Ports


def planned(*argv: str) -> Plan:
    """Parse as click does, without running."""
    given: dict[str, Any] = run.command.make_context("run", list(argv)).params
    return run.plan_of(given)


@pytest.mark.rule("K-10")
def test_without_flags_the_sidecar_is_told_nothing_special() -> None:
    """Ports are free ones, the app ID is made up, and no file is read that nobody named."""
    plan = planned()

    assert re.fullmatch(r"[a-z]+-[a-z]+", plan.app_id)
    assert plan.ports == Ports()
    assert plan.app_port == 0
    assert plan.command == ()
    assert plan.sidecar_flags == ()
    assert planned("--app-id", "").app_id


@pytest.mark.rule("K-10")
def test_ports_are_given_by_long_and_short_names() -> None:
    """-1 is Dapr's word for none."""
    plan = planned("-a", "x", "-p", "1", "-H", "2", "-G", "3", "-I", "4", "-M", "5")

    assert (plan.app_id, plan.app_port) == ("x", 1)
    assert plan.ports == Ports(http=2, grpc=3, internal=4, metrics=5)
    assert planned("--app-port", "-1", "--dapr-http-port", "-1").ports == Ports()
    assert planned("--enable-profiling", "--profile-port", "6").ports.profile == 6
    assert planned("--enable-profiling").ports.profile == 0
    assert planned("--profile-port", "6").ports.profile is None


@pytest.mark.rule("K-10", "K-12")
@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["-P", "grpc"], ["--app-protocol", "grpc"]),
        (["-c", "f.yaml"], ["--config", "f.yaml"]),
        (
            ["--resources-path", "a,b", "--resources-path", "c"],
            [*("--resources-path", "a"), *("--resources-path", "b")],
        ),
        (["-d", "old"], ["--components-path", "old"]),
        (["--log-level", "debug"], ["--log-level", "debug"]),
        (["--app-max-concurrency", "3"], ["--app-max-concurrency", "3"]),
        (["--max-body-size", "8Mi"], ["--max-body-size", "8Mi"]),
        (["--read-buffer-size", "8Ki"], ["--read-buffer-size", "8Ki"]),
        (["-u", "/tmp/s"], ["--unix-domain-socket", "/tmp/s"]),
        (["--enable-app-health-check"], ["--enable-app-health-check"]),
        (["--app-health-check-path", "/h"], ["--app-health-check-path", "/h"]),
        (["--app-health-probe-interval", "1"], ["--app-health-probe-interval", "1"]),
        (["--app-health-probe-timeout", "2"], ["--app-health-probe-timeout", "2"]),
        (["--app-health-threshold", "3"], ["--app-health-threshold", "3"]),
        (["--enable-api-logging"], ["--enable-api-logging"]),
        (["--dapr-listen-addresses", "::1,127.0.0.1"], ["--dapr-listen-addresses", "::1,127.0.0.1"]),
        (["--app-channel-address", "h"], ["--app-channel-address", "h"]),
        (["--app-ssl"], ["--app-ssl"]),
        (["--placement-host-address", "p"], ["--placement-host-address", "p"]),
        (["--scheduler-host-address", "s"], ["--scheduler-host-address", "s"]),
        (["--log-as-json"], ["--log-as-json"]),
        (["--dapr-graceful-shutdown-seconds", "9"], ["--dapr-graceful-shutdown-seconds", "9"]),
        (["--dapr-block-shutdown-duration", "2s"], ["--dapr-block-shutdown-duration", "2s"]),
        (["--allowed-origins", "http://a"], ["--allowed-origins", "http://a"]),
        (["--disable-init-endpoints", "config"], ["--disable-init-endpoints", "config"]),
        (["--dapr-public-port", "4000"], ["--dapr-public-port", "4000"]),
        (["--dapr-public-listen-address", "::1"], ["--dapr-public-listen-address", "::1"]),
        (["--metrics-listen-address", "::1"], ["--metrics-listen-address", "::1"]),
        (["--log-file", "f"], ["--log-file", "f"]),
        (["--disable-metrics"], ["--enable-metrics=false"]),
        (["--enable-metrics"], []),
    ],
)
def test_flags_are_passed_on(argv: list[str], flags: list[str]) -> None:
    """All that Dapr's command knows."""
    found = list(planned("-a", "x", *argv).sidecar_flags)

    assert found[: len(flags)] == flags


@pytest.mark.parametrize(
    ("argv", "drain_s"),
    [
        ([], 5.0),
        (["--dapr-graceful-shutdown-seconds", "9", "--dapr-block-shutdown-duration", "2s"], 11.0),
        (["--dapr-graceful-shutdown-seconds", "-1"], 5.0),
        (["--dapr-graceful-shutdown-seconds", "0"], None),
        (["--dapr-graceful-shutdown-seconds", "soon"], 5.0),
    ],
)
def test_the_sidecar_gets_the_time_that_its_options_give_it(argv: list[str], drain_s: float | None) -> None:
    assert planned("-a", "x", *argv).drain_s == drain_s


@pytest.mark.rule("K-12")
def test_a_configuration_with_mtls_switches_it_on(tmp_path: Path) -> None:
    """The sidecar alone does not look at it."""
    on, off = tmp_path / "on.yaml", tmp_path / "off.yaml"
    on.write_text("spec: {mtls: {enabled: true}}")
    off.write_text("spec: {mtls: {enabled: false}}")

    assert "--enable-mtls" in planned("-a", "x", "-c", str(on)).sidecar_flags
    assert "--enable-mtls" not in planned("-a", "x", "-c", str(on), "-c", str(off)).sidecar_flags
    assert "--enable-mtls" not in planned("-a", "x", "-c", str(tmp_path / "none")).sidecar_flags


@pytest.mark.rule("K-10")
def test_the_command_begins_at_the_first_word_that_is_no_flag() -> None:
    """What follows is the app's, even if it looks like a flag of ours."""
    assert planned("-a", "x", "--", "python", "-a", "y").command == ("python", "-a", "y")
    assert planned("-a", "x", "python", "app.py", "--app-id", "y").command == ("python", "app.py", "--app-id", "y")


@pytest.mark.rule("K-13")
@pytest.mark.parametrize(("protocol", "secure"), [("http", "https"), ("grpc", "grpcs"), ("h2c", "h2c")])
def test_app_ssl_shows_in_the_protocol_of_the_app(protocol: str, secure: str) -> None:
    """It is deprecated, and still means what it meant."""
    assert planned("-P", protocol, "--app-ssl").app_protocol == secure
    assert planned("-P", protocol).app_protocol == protocol
