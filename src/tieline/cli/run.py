"""``tieline run``: flags to a plan. The work is done in ``supervise``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any, Final

import click

from tieline.cli.console import Console
from tieline.cli.supervise import Plan, Ports, supervise
from tieline.config.duration import parse_duration
from tieline.config.flags import Effect, shown_default
from tieline.config.options import OPTIONS
from tieline.errors import StartError

_ADJECTIVES: Final = (
    *("amber", "brave", "calm", "dusty", "eager", "fuzzy", "gentle", "hardy", "ivory", "jolly", "keen", "lucky"),
    *("mellow", "noble", "olive", "plucky", "quiet", "rusty", "sunny", "tidy", "upbeat", "vivid", "witty", "zesty"),
)
_ANIMALS: Final = (
    *("badger", "crane", "dolphin", "egret", "falcon", "gecko", "heron", "ibis", "jackal", "koala", "lynx", "marten"),
    *("newt", "otter", "panda", "quail", "raven", "seal", "tapir", "urchin", "viper", "walrus", "yak", "zebra"),
)
_SECURE: Final = {"http": "https", "grpc": "grpcs"}

# Flags of daprd with a value that are passed on as given, if given: name, short form, help.
_PASSED: Final[tuple[tuple[str, str, str], ...]] = (
    ("log-level", "", "debug, info, warn, error or fatal."),
    ("app-max-concurrency", "", "Most calls that the app gets at once; any number if not given."),
    ("max-body-size", "", "Longest body, e.g. 16Mi."),
    ("read-buffer-size", "", "Longest request head, e.g. 8Ki."),
    ("app-health-check-path", "", "Path that tells whether the app is well."),
    ("app-health-probe-interval", "", "Seconds between two health checks."),
    ("app-health-probe-timeout", "", "Milliseconds that a health check may take."),
    ("app-health-threshold", "", "Failed checks until the app counts as ill."),
    ("placement-host-address", "", "For actors."),
    ("scheduler-host-address", "", "For jobs."),
    ("dapr-graceful-shutdown-seconds", "", "How long calls may take to finish at the end; 0 for no limit."),
    ("dapr-block-shutdown-duration", "", "How long calls are still taken before that, e.g. 10s."),
    ("allowed-origins", "", "Web pages that may call the API, e.g. http://localhost:5173."),
    ("disable-init-endpoints", "", "Paths of the app not asked at its start: config, subscribe."),
    ("dapr-public-port", "", "Port for health and metadata only."),
    ("dapr-public-listen-address", "", "Address of that port; all if not given."),
    ("metrics-listen-address", "", "Address of the metrics; loopback if not given."),
    ("log-file", "", "File for the sidecar's log lines."),
    ("components-path", "d", "Deprecated: use --resources-path."),
)
_SWITCHES: Final[tuple[tuple[str, str], ...]] = (
    ("enable-profiling", "Offer profiles of the sidecar."),
    ("enable-app-health-check", "Send the app no calls while it is ill."),
    ("enable-api-logging", "Log each call of the API."),
    ("no-mdns", "Find apps by the registry of this host only."),
    ("app-ssl", "Deprecated: use --app-protocol https or grpcs."),
)
MAX_PORT: Final = 65535


def _port(value: str | int) -> int:
    """Return the port; -1 and 0 mean none or any."""
    text = str(value)
    if not text.removeprefix("-").isdecimal() or not -1 <= int(text) <= MAX_PORT:
        raise click.BadParameter(f"{text!r} is no port: give a number from 1 to {MAX_PORT}.")
    return int(text)


def _parameter(name: str) -> str:
    return name.replace("-", "_")


def _about(name: str, text: str) -> str:
    """Return a flag's help with its default, if the sidecar has one; it owns up to doing nothing yet."""
    flag = OPTIONS[name]
    default = shown_default(flag) if any(name == passed for passed, _, _ in _PASSED) else ""
    remarks = [f"default {default}"] if default and default != "-1" else []
    if flag.effect() is Effect.IGNORED:
        remarks.append("no effect yet")
    return f"{text.removesuffix('.')} ({'; '.join(remarks)})." if remarks else text


def _declare_passed(function: Any) -> Any:
    for name, short, help_text in reversed(_PASSED):
        flags = [f"--{name}", f"-{short}"] if short else [f"--{name}"]
        function = click.option(*flags, metavar="VALUE", help=_about(name, help_text))(function)
    for name, help_text in reversed(_SWITCHES):
        function = click.option(f"--{name}", is_flag=True, help=_about(name, help_text))(function)
    return function


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    options_metavar="[FLAGS]",
)
@click.option("--app-id", "-a", default="", help="Name that others call the app by; made up if not given.")
@click.option("--app-port", "-p", type=_port, default=-1, metavar="PORT", help="Port that the app listens on.")
@click.option("--app-protocol", "-P", default="http", help="http, https, h2c, grpc or grpcs.")
@click.option(
    "--dapr-http-port", "-H", type=_port, default=-1, metavar="PORT", help="HTTP API; a free one if not given."
)
@click.option(
    "--dapr-grpc-port", "-G", type=_port, default=-1, metavar="PORT", help=_about("dapr-grpc-port", "gRPC API.")
)
@click.option("--dapr-internal-grpc-port", "-I", type=_port, default=-1, metavar="PORT", help="For other sidecars.")
@click.option("--metrics-port", "-M", type=_port, default=-1, metavar="PORT", help=_about("metrics-port", "Metrics."))
@click.option("--profile-port", type=_port, default=-1, metavar="PORT", help=_about("profile-port", "Profiles."))
@click.option("--config", "-c", multiple=True, metavar="FILE", help="Configuration resource; none if not given.")
@click.option(
    "--resources-path", multiple=True, metavar="FOLDER", help=_about("resources-path", "Folder of resources.")
)
@click.option("--dapr-listen-addresses", default="", metavar="LIST", help="Addresses of the APIs.")
@click.option("--app-channel-address", default="127.0.0.1", metavar="HOST", help="Where the app is; 127.0.0.1.")
@click.option(
    "--unix-domain-socket",
    "-u",
    default="",
    metavar="FOLDER",
    help="Folder for a Unix domain socket that replaces the HTTP API port.",
)
@click.option("--enable-metrics/--disable-metrics", default=True, help="Serve metrics; they are on if not given.")
@click.option("--log-as-json", is_flag=True, help="Log lines and status lines as JSON.")
@_declare_passed
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(**given: Any) -> int:
    """Start an app with a sidecar beside it.

    The app finds its sidecar by DAPR_HTTP_PORT. Its output is shown behind == APP ==. If either
    ends, so does the other; the exit code is the app's.

    Ctrl-C or SIGTERM lets calls in progress finish, for 5 s unless --dapr-graceful-shutdown-seconds says
    otherwise, and then stops the app, which is killed 6 s later. A second one kills both at once. SIGHUP
    has the sidecar read its files anew.

    \b
      tieline run --app-id orders --app-port 5001 -- python orders.py
    """
    return supervise(plan_of(given), Console(as_json=given["log_as_json"]))


def plan_of(given: dict[str, Any]) -> Plan:
    """Turn parsed flags, by parameter name, into a plan."""
    resources = tuple(item for text in given["resources_path"] for item in text.split(",") if item)
    listen = tuple(item.strip() for item in given["dapr_listen_addresses"].split(",") if item.strip())
    protocol: str = given["app_protocol"]
    return Plan(
        app_id=given["app_id"] or made_up_app_id(),
        command=tuple(given["command"]),
        app_port=max(0, given["app_port"]),
        app_protocol=_SECURE.get(protocol, protocol) if given["app_ssl"] else protocol,
        app_address=given["app_channel_address"],
        ports=Ports(
            http=max(0, given["dapr_http_port"]),
            grpc=max(0, given["dapr_grpc_port"]),
            internal=max(0, given["dapr_internal_grpc_port"]),
            metrics=max(0, given["metrics_port"]),
            profile=max(0, given["profile_port"]) if given["enable_profiling"] else None,
        ),
        listen_addresses=listen,
        socket_folder=given["unix_domain_socket"],
        resources=resources,
        sidecar_flags=tuple(_sidecar_flags(given, resources)),
        drain_s=_drain_s(given),
        as_json=given["log_as_json"],
    )


def _drain_s(given: dict[str, Any]) -> float | None:
    """Return how long the sidecar may take for its end by its options; what they mean is its own business to say."""
    try:
        grace = int(given["dapr_graceful_shutdown_seconds"] or "5")
        block_s = parse_duration(given["dapr_block_shutdown_duration"] or "0s")
    except ValueError:
        return 5.0
    return None if grace == 0 else max(block_s, 0.0) + (5.0 if grace < 0 else float(grace))


def _asks_for_mtls(files: Sequence[str]) -> bool:
    """Whether Configurations switch mTLS on (K-12); what cannot be read is for the sidecar to tell."""
    from tieline.config.configuration import asks_for_mtls

    try:
        return asks_for_mtls(files, os.environ)
    except StartError:
        return False


def _sidecar_flags(given: dict[str, Any], resources: tuple[str, ...]) -> list[str]:
    """Return what the sidecar is told beyond app ID and ports: only what differs from its defaults."""
    flags: list[str] = []
    if given["app_protocol"] != "http":
        flags += ["--app-protocol", given["app_protocol"]]
    if given["app_channel_address"] != "127.0.0.1":
        flags += ["--app-channel-address", given["app_channel_address"]]
    if given["dapr_listen_addresses"]:
        flags += ["--dapr-listen-addresses", given["dapr_listen_addresses"]]
    if given["unix_domain_socket"]:
        flags += ["--unix-domain-socket", given["unix_domain_socket"]]
    for file in given["config"]:
        flags += ["--config", file]
    for folder in resources:
        flags += ["--resources-path", folder]
    for name, _, _ in _PASSED:
        value = given[_parameter(name)]
        if value is not None:
            flags += [f"--{name}", value]
    for name in (*(name for name, _ in _SWITCHES), "log-as-json"):
        if given[_parameter(name)]:
            flags.append(f"--{name}")
    if given["config"] and _asks_for_mtls(given["config"]):
        flags.append("--enable-mtls")
    if not given["enable_metrics"]:
        flags.append("--enable-metrics=false")
    return flags


def made_up_app_id() -> str:
    """Return a name of two words, e.g. ``sunny-otter``."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_ANIMALS)}"
