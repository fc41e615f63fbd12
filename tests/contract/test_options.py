"""What a sidecar process makes of its command line: exit codes, last words, and the ports that it listens on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.contract.harness.mesh import POLL_S, READY_S, STOP_S, accepts, clean_environ, get
from tests.support.mesh import free_port
from tieline import __version__

COMMAND: Final = (sys.executable, "-m", "tieline", "sidecar")
APP_ID: Final = ("--app-id", "a")
RUNTIME: Final = "Fatal error from runtime: "
FLAGS: Final = "Failed to parse flags: "
HTTP_PORT: Final = re.compile(r"HTTP server is running on port (\d+)")


@dataclass(frozen=True)
class Ports:
    """Ports for one process, free when they were chosen."""

    http: int
    grpc: int
    internal: int
    metrics: int

    def flags(self, dashes: str = "--") -> list[str]:
        """Return the options that say them."""
        pairs = {
            "dapr-http-port": self.http,
            "dapr-grpc-port": self.grpc,
            "dapr-internal-grpc-port": self.internal,
            "metrics-port": self.metrics,
        }
        return [word for name, port in pairs.items() for word in (dashes + name, str(port))]


@pytest.fixture
def ports() -> Ports:
    return Ports(free_port(), free_port(), free_port(), free_port())


def ended(*arguments: str, folder: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a sidecar that ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environ({"XDG_STATE_HOME": str(folder), **(environ or {})}),
        cwd=folder, capture_output=True, text=True, timeout=READY_S, check=False,
    )  # fmt: skip


# ── it answers and ends ────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-9", "H-148")
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--version", [__version__]),
        ("-version", [__version__]),
        ("--build-info", [f"Version: {__version__}", "Git Commit: ", "Git Version: "]),
    ],
)
def test_a_question_is_answered_on_standard_output(argument: str, words: list[str], tmp_path: Path) -> None:
    process = ended(argument, folder=tmp_path)

    assert (process.returncode, process.stdout.splitlines(), process.stderr) == (0, words, "")


@pytest.mark.rule("H-9", "H-148")
@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_is_given_on_standard_error(argument: str, tmp_path: Path) -> None:
    process = ended(argument, folder=tmp_path)

    assert (process.returncode, process.stdout) == (0, "")
    assert "--dapr-http-port" in process.stderr


# ── it does not understand ─────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-9", "H-148", "H-151")
@pytest.mark.parametrize(
    ("arguments", "last_words"),
    [
        (["--no-such-option", "1"], "unknown flag: --no-such-option"),
        (["-no-such-option"], "unknown flag: --no-such-option"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["--app-port"], "flag needs an argument: --app-port"),
        (["--App-Port", "1"], "unknown flag: --App-Port"),
        (
            ["--dapr-graceful-shutdown-seconds", "ten"],
            'invalid argument "ten" for "--dapr-graceful-shutdown-seconds" flag: ',
        ),
        (["--enable-mtls=maybe"], 'invalid argument "maybe" for "--enable-mtls" flag: '),
        (
            ["--dapr-block-shutdown-duration", "5"],
            'invalid argument "5" for "--dapr-block-shutdown-duration" flag: ',
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_option_that_is_none_ends_it_with_2(arguments: list[str], last_words: str, tmp_path: Path) -> None:
    process = ended(*APP_ID, *arguments, folder=tmp_path)

    assert (process.returncode, process.stdout) == (2, "")
    *usage, last = process.stderr.splitlines()
    assert last.startswith(last_words)
    assert ("did you mean --app-port?" in usage) == ("--App-Port" in arguments)
    assert any("--dapr-http-port" in line for line in usage)


# ── it cannot do as told ───────────────────────────────────────────────────────────────────────────
def refused(process: subprocess.CompletedProcess[str], words: str) -> None:
    """Check that a sidecar ended because of ``words``, and says so where people and programs look."""
    assert process.returncode == 1
    fatal = [line for line in process.stdout.splitlines() if " level=fatal " in line]
    assert len(fatal) == 1, process.stdout
    assert f'msg="{words}' in fatal[0].replace('\\"', '"')
    assert process.stderr.splitlines()[-1].startswith(f"tieline sidecar: {words}")
    assert "Traceback" not in process.stderr


@pytest.mark.rule("H-9", "H-11", "H-12", "H-14", "H-148", "H-151")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dapr-http-port", "abc"], RUNTIME + "error parsing dapr-http-port flag: "),
        (["--app-port", "abc"], RUNTIME + "error parsing app-port: "),
        (["--app-id="], RUNTIME + "parameter app-id cannot be empty"),
        (["--app-id", "a.b"], RUNTIME + "parameter app-id cannot contain dots"),
        (["--app-protocol", "ftp"], RUNTIME + "invalid value for 'app-protocol': ftp"),
        (["--mode", "moon"], RUNTIME + "invalid mode: moon"),
        (["--log-level", "loud"], "invalid value for --log-level: loud"),
        (["--disable-init-endpoints", "config,foo"], RUNTIME + "invalid value for 'disable-init-endpoints': foo"),
        (
            ["--app-health-probe-interval", "1", "--app-health-probe-timeout", "1001"],
            RUNTIME + "value for 'health-probe-timeout' must be smaller than 'health-probe-interval'",
        ),
        (
            ["--dapr-http-port", "41001", "--app-port", "41001"],
            RUNTIME + "the 'dapr-http-port' argument value 41001 conflicts with 'app-port'",
        ),
        (
            ["--dapr-grpc-port", "41002", "--app-port", "41002"],
            RUNTIME + "the 'dapr-grpc-port' argument value 41002 conflicts with 'app-port'",
        ),
        (["--max-body-size", "lots"], FLAGS + "invalid value for 'max-body-size' option: "),
        (["--max-body-size", "1.5"], FLAGS + "invalid value for 'max-body-size' option: "),
        (["--read-buffer-size", "x"], FLAGS + "invalid value for 'read-buffer-size' option: "),
        (
            ["--config", "/no/such/file.yaml"],
            RUNTIME + "error loading configuration: stat /no/such/file.yaml: no such file or directory",
        ),
        (["--config", "bad.yaml"], RUNTIME + "error loading configuration: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_cannot_be_ends_it_with_1(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("spec: [1, 2")

    refused(ended(*APP_ID, *arguments, folder=tmp_path), words)


@pytest.mark.rule("H-9", "H-10", "H-148")
@pytest.mark.parametrize("environ", [{}, {"APP_ID": "from-outside"}], ids=["none", "APP_ID"])
def test_the_app_id_is_an_option_and_no_variable(environ: dict[str, str], tmp_path: Path) -> None:
    refused(ended(folder=tmp_path, environ=environ), RUNTIME + "parameter app-id cannot be empty")


@pytest.mark.rule("H-1", "H-9", "H-148")
@pytest.mark.parametrize(
    ("arguments", "server"),
    [
        (["--dapr-http-port", "70000"], "HTTP"),
        (["--dapr-http-port", "-1"], "HTTP"),
        (["--dapr-http-port", "41001", "--dapr-grpc-port", "41001"], "HTTP"),
        (["--dapr-grpc-port", "70000"], "API gRPC"),
        (["--dapr-http-port", "41001", "--dapr-listen-addresses", "203.0.113.7"], "API gRPC"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_port_that_cannot_be_had_ends_it_with_1(arguments: list[str], server: str, tmp_path: Path) -> None:
    words = RUNTIME + f"failed to start {server} server: could not listen on any endpoint"

    refused(ended(*APP_ID, *arguments, folder=tmp_path), words)


@pytest.mark.parametrize("option", ["--dapr-listen-addresses", "--dapr-internal-grpc-listen-address"])
def test_an_address_of_another_host_is_told_as_that(option: str, tmp_path: Path) -> None:
    process = ended(*APP_ID, option, "203.0.113.7", folder=tmp_path)

    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert "cannot assign requested address" in last
    assert option in last
    assert "choose another" not in last


# ── it serves ──────────────────────────────────────────────────────────────────────────────────────
def is_healthy(port: int) -> bool:
    """Whether a sidecar on this port is ready."""
    try:
        return get(port, "/v1.0/healthz").status == "204"
    except OSError:
        return False


class Serving:
    """A sidecar that serves, with what it writes in files."""

    def __init__(self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                env=clean_environ({"XDG_STATE_HOME": str(folder), **environ}),
                cwd=folder, stdout=out, stderr=err,
            )  # fmt: skip

    def metadata(self, port: int) -> dict[str, Any]:
        """Return what it says of itself on ``port``, once it is ready."""
        self._until(lambda: is_healthy(port))
        found: dict[str, Any] = json.loads(get(port, "/v1.0/metadata").body)
        return found

    def http_port(self) -> int:
        """Return the port of its API, once it says so."""
        self._until(lambda: HTTP_PORT.search(self.stdout) is not None)
        found = HTTP_PORT.search(self.stdout)
        assert found is not None
        return int(found[1])

    def _until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not what():
            assert self._process.poll() is None, self.stdout + self.stderr
            assert time.monotonic() < deadline, self.stdout + self.stderr
            time.sleep(POLL_S)

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def stop(self) -> int:
        """Tell it to end, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_S)

    def kill(self) -> None:
        """End it at once. Idempotent."""
        self._process.kill()
        self._process.wait()


class Starter:
    """Starts sidecars in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Serving] = []

    def __call__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Serving:
        serving = Serving(arguments, self._folder, environ or {})
        self._started.append(serving)
        return serving

    def close(self) -> None:
        """End all of them."""
        for serving in self._started:
            serving.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    try:
        yield starter
    finally:
        starter.close()


WITHOUT_APP: Final = {"protocol": "http", "channelAddress": "127.0.0.1"}


@pytest.mark.rule("H-9", "H-14", "H-148")
@pytest.mark.parametrize(
    ("arguments", "app_id"),
    [
        (["--app-id=a"], "a"),
        (["--app-id", "a", "--app-id", "b"], "b"),
        (["--app-id", "a", "something"], "a"),
        (["--app-id", "a", "--app-protocol", "HTTP"], "a"),
        (["--app-id", "a", "--disable-init-endpoints", "CONFIG,,subscribe"], "a"),
        (["--app-id", "a", "--config", "empty.yaml"], "a"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sidecar_serves_on_the_ports_that_it_was_given(
    arguments: list[str], app_id: str, ports: Ports, start: Starter, tmp_path: Path
) -> None:
    (tmp_path / "empty.yaml").touch()

    sidecar = start(*arguments, *ports.flags())
    metadata = sidecar.metadata(ports.http)

    assert (metadata["id"], metadata["appConnectionProperties"]) == (app_id, WITHOUT_APP)
    assert accepts(ports.internal)
    assert sidecar.stop() == 0


@pytest.mark.rule("H-12")
def test_port_0_is_any_free_port(start: Starter) -> None:
    """Where ``daprd`` takes it for a conflict with an app port that was not given."""
    sidecar = start(*APP_ID, "--dapr-http-port", "0", "--dapr-grpc-port", "0")

    port = sidecar.http_port()

    assert port > 0
    assert sidecar.metadata(port)["id"] == "a"


@pytest.mark.rule("H-9")
def test_one_dash_is_as_good_as_two(ports: Ports, start: Starter) -> None:
    assert start("-app-id", "a", *ports.flags("-")).metadata(ports.http)["id"] == "a"


@pytest.mark.rule("H-10")
def test_ports_are_options_and_no_variables(ports: Ports, start: Starter) -> None:
    outside = {"DAPR_HTTP_PORT": "1", "APP_PORT": "1", "DAPR_GRPC_PORT": "1", "NAMESPACE": ""}

    metadata = start(*APP_ID, *ports.flags(), environ=outside).metadata(ports.http)

    assert metadata["appConnectionProperties"] == WITHOUT_APP


@pytest.mark.rule("H-9")
def test_a_boolean_takes_its_value_only_with_an_equals_sign(ports: Ports, start: Starter) -> None:
    apart = start(*APP_ID, *ports.flags(), "--log-as-json", "false")
    apart.metadata(ports.http)

    lines = [json.loads(line) for line in apart.stdout.splitlines()]
    assert {line["app_id"] for line in lines} == {"a"}

    apart.stop()
    joined = start(*APP_ID, *ports.flags(), "--log-as-json=false")
    joined.metadata(ports.http)

    assert all(line.startswith("time=") for line in joined.stdout.splitlines())


@pytest.mark.rule("H-9", "H-11")
def test_an_old_option_works_and_says_which_one_is_new(ports: Ports, start: Starter) -> None:
    sidecar = start(*APP_ID, *ports.flags(), "--dapr-http-max-request-size", "8")
    sidecar.metadata(ports.http)

    assert sidecar.stderr == "Flag --dapr-http-max-request-size has been deprecated, use '--max-body-size 4Mi'\n"
