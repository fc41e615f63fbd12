"""``tieline run`` with real processes: what is started, how it ends, and what the user is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tieline

HERE = Path(__file__).parent
SOURCE = str(Path(tieline.__file__).parents[1])
TIMEOUT_S = 20.0
GONE_S = 5.0


class Driver:
    """A ``supervise`` in a process of its own, whose lines can be waited for."""

    def __init__(self, folder: Path, plan: dict[str, Any], environment: dict[str, str]) -> None:
        self._out_path = folder / "out"
        self._err_path = folder / "err"
        with self._out_path.open("wb") as out, self._err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "run_driver.py"), json.dumps(plan)],
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": SOURCE, "XDG_STATE_HOME": str(folder), **environment},
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out_path.read_text("utf-8")

    @property
    def err(self) -> str:
        return self._err_path.read_text("utf-8")

    def until(self, text: str) -> None:
        """Wait until standard output or error has the text."""
        wait_until(lambda: text in self.out + self.err, f"{text!r} in {self}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(TIMEOUT_S)

    def app_environment(self) -> dict[str, str | None]:
        line = next(line for line in self.out.splitlines() if "ENV " in line)
        found: dict[str, str | None] = json.loads(line.partition("ENV ")[2])
        return found

    def sidecar_starts(self) -> list[list[str]]:
        lines = [line for line in self.out.splitlines() if line.startswith('{"sidecar"')]
        return [json.loads(line)["sidecar"] for line in lines]

    def __str__(self) -> str:
        return f"out:\n{self.out}\nerr:\n{self.err}"


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def driven(folder: Path, plan: dict[str, Any], behave: str = "", **environment: str) -> Iterator[Driver]:
    sidecar = [sys.executable, str(HERE / "fake_sidecar.py")]
    if behave:
        sidecar += ["--behave", behave]
    driver = Driver(folder, {"sidecar": sidecar, **plan}, environment)
    try:
        yield driver
    finally:
        # Twice: the second one kills what ignores the first. SIGKILL would leave its children behind.
        for _ in range(2):
            driver.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.process.wait(GONE_S)
        driver.process.kill()
        driver.process.wait()


def app(port: int, mode: str) -> list[str]:
    return [sys.executable, str(HERE / "example_app.py"), str(port), mode]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


@pytest.mark.rule("K-13", "K-14")
def test_sidecar_first_then_the_app_with_its_variables(tmp_path: Path, port: int) -> None:
    """The app starts when calls are taken, and an exported variable does not hide the right one."""
    plan = {"command": app(port, "termcode"), "app_port": port}
    stale = {"APP_ID": "x", "APP_PORT": "1", "APP_PROTOCOL": "x", "DAPR_HTTP_PORT": "2", "OTHER": "kept"}

    with driven(tmp_path, plan, **stale) as run:
        run.until("termcode is up")
        run.until("You're up and running! Both Dapr and your app logs will appear here.")
        environment = run.app_environment()
        (flags,) = run.sidecar_starts()

    assert run.out.startswith("ℹ️  Starting Dapr with id a. HTTP Port: ")
    assert run.out.index('{"sidecar"') < run.out.index("== APP == ENV")
    assert environment["APP_ID"] == "a"
    assert environment["APP_PORT"] == str(port)
    assert environment["APP_PROTOCOL"] == "http"
    assert environment["APP_CHANNEL_ADDRESS"] == "127.0.0.1"
    assert environment["DAPR_HTTP_PORT"] == flags[flags.index("--dapr-http-port") + 1]
    assert environment["DAPR_GRPC_PORT"] == flags[flags.index("--dapr-grpc-port") + 1]
    assert environment["DAPR_METRICS_PORT"] == flags[flags.index("--metrics-port") + 1]
    assert environment["OTHER"] == "kept"
    assert '"own_group": true' in run.out


@pytest.mark.rule("K-13")
def test_each_variable_of_the_app_stands_once(tmp_path: Path) -> None:
    """The list that the system hands to the app has no second value behind the right one."""
    names = ("APP_ID=", "DAPR_HTTP_PORT=", "DAPR_GRPC_PORT=", "APP_PORT=")
    code = "import sys; sys.stdout.buffer.write(open('/proc/self/environ','rb').read().replace(b'\\0', b'\\n'))"

    with driven(tmp_path, {"command": [sys.executable, "-c", code]}, APP_ID="x", DAPR_HTTP_PORT="2") as run:
        run.end()

    found = [line.removeprefix("== APP == ") for line in run.out.splitlines()]
    assert [sum(line.startswith(name) for line in found) for name in names] == [1, 1, 1, 0]


@pytest.mark.rule("K-13")
def test_what_is_not_known_of_an_app_is_left_as_it_was(tmp_path: Path, port: int) -> None:
    """No app port, and nothing that would send SDKs elsewhere."""
    plan = {"command": app(port, "now0")}
    code = "import json, os; print('ENV ' + json.dumps(dict(os.environ)))"

    with driven(tmp_path, {"command": [sys.executable, "-c", code]}, APP_PORT="4711", DAPR_API_TOKEN="ours") as run:
        run.end()
        inherited = run.app_environment()
    with driven(tmp_path, plan) as run:
        run.end()
        bare = run.app_environment()

    assert (inherited["APP_PORT"], inherited["DAPR_API_TOKEN"]) == ("4711", "ours")
    assert not {"DAPR_HTTP_ENDPOINT", "DAPR_GRPC_ENDPOINT"} & inherited.keys()
    assert bare["APP_PORT"] is None


def test_output_and_errors_of_the_app_stay_apart_and_are_marked(tmp_path: Path, port: int) -> None:
    """Each line has the prefix on its own stream; the sidecar's lines have none."""
    with driven(tmp_path, {"command": app(port, "now0")}) as run:
        run.end()

    assert "== APP == this is stderr\n" in run.err
    assert "this is stderr" not in run.out
    assert "\n== APP == ENV " in run.out
    assert '== APP == {"sidecar"' not in run.out


@pytest.mark.parametrize(("mode", "code"), [("now0", 0), ("now3", 3), ("killself", 137)])
def test_the_exit_code_is_the_apps_own(tmp_path: Path, port: int, mode: str, code: int) -> None:
    """An app that ends takes the sidecar with it and leaves its code, 128 and the number after a signal."""
    with driven(tmp_path, {"command": app(port, mode)}) as run:
        found = run.end()

    assert found == code, str(run)
    assert "sidecar got SIGTERM" in run.out
    assert "Exited Dapr successfully" in run.out
    assert ("❌  Error exiting App: " in run.err) == (code != 0)


@pytest.mark.rule("K-15")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_in_good_order(tmp_path: Path, port: int, number: int) -> None:
    """Both get SIGTERM once; an app that dies of it as asked is no failure."""
    with driven(tmp_path, {"command": app(port, "serve"), "app_port": port}) as run:
        run.until("You're up")
        run.until("serve is up")
        run.send(number)
        code = run.end()

    assert code == 0
    assert "ℹ️  \nterminated signal received: shutting down\n" in run.out
    assert run.out.count("sidecar got SIGTERM") == 1
    assert "Exited Dapr successfully" in run.out
    assert "Exited App successfully" in run.out


@pytest.mark.rule("K-15")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_app_stays_until_the_sidecar_has_ended(tmp_path: Path, port: int, number: int) -> None:
    """Calls in progress can finish only while the app is there to answer them."""
    with driven(tmp_path, {"command": app(port, "serve"), "app_port": port}, behave="drain") as run:
        run.until("You're up")
        run.until("serve is up")
        run.send(number)
        code = run.end()

    assert code == 0
    assert "at the end of the drain the app listens: True" in run.out


def test_a_sidecar_that_outlasts_its_grace_is_killed_and_the_app_asked_then(tmp_path: Path, port: int) -> None:
    """The app is not killed for what its sidecar does."""
    limits = {"beyond_drain_s": 0.1}
    plan = {"command": app(port, "termcode"), "app_port": port, "limits": limits, "drain_s": 0.1}

    with driven(tmp_path, plan, behave="stubborn") as run:
        run.until("termcode is up")
        run.until("You're up")
        run.send(signal.SIGTERM)
        code = run.end()

    assert code == 7
    assert "The sidecar has not ended within 0.2 s: killing what is left" in run.out
    assert "app got SIGTERM" in run.out


def test_a_hang_up_is_a_reload_of_the_sidecar(tmp_path: Path, port: int) -> None:
    """It reaches the sidecar alone, which must be up to understand it, and ends nobody."""
    with driven(tmp_path, {"command": app(port, "serve"), "app_port": port}) as run:
        run.until('{"sidecar"')
        run.send(signal.SIGHUP)
        run.until("sidecar got SIGHUP")
        run.until("You're up")
        run.send(signal.SIGHUP)
        wait_until(lambda: run.out.count("sidecar got SIGHUP") == 2, "the second reload")
        run.send(signal.SIGTERM)
        code = run.end()

    assert code == 0
    assert "the sidecar reads its files anew" in run.out


def test_after_a_signal_the_app_still_has_its_own_code(tmp_path: Path, port: int) -> None:
    """An app that ends by itself on SIGTERM says with which code."""
    with driven(tmp_path, {"command": app(port, "termcode"), "app_port": port}) as run:
        run.until("termcode is up")
        run.until("You're up")
        run.send(signal.SIGTERM)
        code = run.end()

    assert code == 7
    assert "app got SIGTERM" in run.out
    assert "❌  Error exiting App: exit code 7" in run.err


def test_a_second_signal_kills_at_once(tmp_path: Path, port: int) -> None:
    """Neither of two that ignore SIGTERM is waited for any longer."""
    plan = {"command": app(port, "stubborn"), "app_port": port, "limits": {"stop_s": 300, "beyond_drain_s": 300}}

    with driven(tmp_path, plan, behave="stubborn") as run:
        run.until("stubborn is up")
        run.until("You're up")
        run.send(signal.SIGINT)
        run.until("shutting down")
        run.send(signal.SIGINT)
        code = run.end()

    assert code == 137
    assert "killing what is left" in run.out


@pytest.mark.rule("K-15")
def test_an_app_that_ignores_sigterm_is_killed_in_the_end(tmp_path: Path, port: int) -> None:
    """The wait is bounded."""
    plan = {"command": app(port, "stubborn"), "app_port": port, "limits": {"stop_s": 0.2}}

    with driven(tmp_path, plan) as run:
        run.until("stubborn is up")
        run.until("You're up")
        run.send(signal.SIGTERM)
        code = run.end()

    assert code == 137
    assert "Not stopped within 0.2 s" in run.out


@pytest.mark.rule("K-15")
def test_the_whole_group_of_the_app_is_asked_and_waited_for(tmp_path: Path, port: int) -> None:
    """A process that the app started may finish its work after the app has gone."""
    with driven(tmp_path, {"command": app(port, "child"), "app_port": port}) as run:
        run.until("slow is up")
        run.until("You're up")
        child = int(next(line for line in run.out.splitlines() if "CHILD" in line).rpartition(" ")[2])
        run.send(signal.SIGINT)
        code = run.end()

    assert code == 0
    assert "child got SIGTERM" in run.out
    assert not is_alive(child)


def test_what_the_app_leaves_behind_is_stopped_when_it_ends(tmp_path: Path) -> None:
    """An app that ends without its children takes them along."""
    command = ["sh", "-c", f"{sys.executable} {HERE / 'example_app.py'} 0 slow & echo CHILD $!; sleep 0.5; exit 5"]

    with driven(tmp_path, {"command": command}) as run:
        code = run.end()
        child = int(next(line for line in run.out.splitlines() if "CHILD" in line).rpartition(" ")[2])

    assert code == 5
    assert not is_alive(child)


@pytest.mark.parametrize(("behave", "code"), [("end3", 1), ("end0", 0)])
def test_a_sidecar_that_ends_ends_the_app(tmp_path: Path, port: int, behave: str, code: int) -> None:
    """A failure of the sidecar is 1, an ordinary end (it was shut down by its API) is none."""
    with driven(tmp_path, {"command": app(port, "serve"), "app_port": port}, behave=behave) as run:
        found = run.end()

    assert found == code, str(run)
    assert "The sidecar has ended" in run.out
    assert "Exited App successfully" in run.out


def test_a_sidecar_that_refuses_to_start_is_told_at_once(tmp_path: Path, port: int) -> None:
    """Its last line is shown, the app is not started."""
    with driven(tmp_path, {"command": app(port, "serve")}, behave="refuse") as run:
        code = run.end()

    assert code == 1
    assert "parameter app-id cannot contain dots" in run.out
    assert "❌  The sidecar could not start (exit code 1)" in run.err
    assert "== APP ==" not in run.out


def test_a_silent_sidecar_is_warned_about_and_the_app_started(tmp_path: Path, port: int) -> None:
    """Waiting for the API is bounded."""
    plan = {"command": app(port, "now0"), "limits": {"sidecar_start_s": 0.3, "stop_s": 0.3}}

    with driven(tmp_path, plan, behave="deaf") as run:
        code = run.end()

    assert code == 0
    assert "⚠  Dapr sidecar might not be responding." in run.out
    assert "== APP == ENV" in run.out


def test_a_signal_while_the_sidecar_starts_ends_it(tmp_path: Path, port: int) -> None:
    """Ctrl-C need not wait for the start."""
    with driven(tmp_path, {"command": app(port, "serve"), "limits": {"stop_s": 0.3}}, behave="deaf") as run:
        run.until('{"sidecar"')
        run.send(signal.SIGINT)
        code = run.end()

    assert code == 130
    assert "== APP ==" not in run.out


def test_a_kill_leaves_no_process_behind(tmp_path: Path, port: int) -> None:
    """SIGKILL cannot be caught, so somebody else asks app and sidecar to stop."""
    with driven(tmp_path, {"command": app(port, "listen"), "app_port": port}) as run:
        run.until("You're up")
        listed = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text("ascii")
        children = [int(word) for word in listed.split()]
        run.process.kill()

        wait_until(lambda: not any(is_alive(pid) for pid in children), "the end of all children")

    assert len(children) == 3  # sidecar, app, and the guard


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./missing", "no such file or directory"),
        ("./script", "permission denied; make it executable"),
        ("./", "is a dir"),
    ],
)
def test_a_command_given_by_its_path_is_told_what_is_wrong_with_it(tmp_path: Path, name: str, reason: str) -> None:
    """It is not looked for in PATH, so PATH is not to blame."""
    (tmp_path / "script").write_text("exit 0")
    path = f"{tmp_path}/{name.removeprefix('./')}"

    with driven(tmp_path, {"command": [path]}) as run:
        code = run.end()

    assert code == 1
    assert f'exec: "{path}": {reason}' in run.err


@pytest.mark.rule("K-14")
def test_a_missing_command_is_told_before_anything_starts(tmp_path: Path) -> None:
    """The words are Dapr's."""
    with driven(tmp_path, {"command": ["no-such-command-x"]}) as run:
        code = run.end()

    assert code == 1
    expected = 'Failed to find command no-such-command-x: exec: "no-such-command-x": executable file not found in $PATH'
    assert run.err == f"❌  {expected}\n"
    assert run.out == ""


def test_a_command_in_quotes_is_told_how_to_write_it(tmp_path: Path) -> None:
    with driven(tmp_path, {"command": ["sleep 1"]}) as run:
        code = run.end()

    assert code == 1
    assert run.err.startswith('❌  Failed to find command sleep 1: exec: "sleep 1": ')
    assert run.err.endswith("leave out the quotes around it: -- sleep 1\n")


def test_a_command_that_cannot_be_executed_stops_the_sidecar(tmp_path: Path) -> None:
    """An executable file of no known kind is told, without a traceback."""
    program = tmp_path / "program"
    program.write_bytes(b"\x00\x01")
    program.chmod(0o755)

    with driven(tmp_path, {"command": [str(program)]}) as run:
        code = run.end()

    assert code == 1
    assert f"❌  Failed to start {program}: Exec format error" in run.err
    assert "sidecar got SIGTERM" in run.out
    assert "Traceback" not in run.err


def test_an_app_port_that_another_program_has_is_told_before_anything_starts(tmp_path: Path) -> None:
    """The app could not listen there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with driven(tmp_path, {"command": app(port, "serve"), "app_port": port}) as run:
            code = run.end()

    assert code == 1
    assert f"App port {port} is taken by another program" in run.err
    assert run.out == ""


@pytest.mark.rule("K-11")
@pytest.mark.parametrize(
    ("name", "label"),
    [("http", "HTTPPort"), ("grpc", "GRPCPort"), ("metrics", "MetricsPort"), ("internal", "Internal")],
)
def test_a_given_port_that_is_taken_is_told(tmp_path: Path, name: str, label: str) -> None:
    """The words are Dapr's; the sidecar is not started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with driven(tmp_path, {"command": ["true"], "ports": {name: port}}) as run:
            code = run.end()

    assert code == 1
    assert f"invalid configuration for {label}" in run.err
    assert f"Port {port} is not available" in run.err
    assert run.sidecar_starts() == []


@pytest.mark.rule("K-11")
def test_a_resources_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    """The words are Dapr's."""
    with driven(tmp_path, {"command": ["true"], "resources": ["/no/such"]}) as run:
        code = run.end()

    assert code == 1
    assert run.err == '❌  error validating resources path ["/no/such"] : stat /no/such: no such file or directory\n'


def test_a_port_that_was_snatched_is_replaced(tmp_path: Path, port: int) -> None:
    """Between choosing a port and listening on it another program may come; the user need not notice."""
    mark = tmp_path / "thief"

    with driven(tmp_path, {"command": app(port, "now0")}, behave=f"steal:{mark}") as run:
        code = run.end()
        os.kill(int(mark.read_text()), signal.SIGKILL)

    first, second = (flags[flags.index("--dapr-http-port") + 1] for flags in run.sidecar_starts())
    assert code == 0, str(run)
    assert first != second
    assert f"Port {first} was taken meanwhile" in run.out
    assert run.app_environment()["DAPR_HTTP_PORT"] == second


def test_an_app_that_never_listens_is_warned_about_and_runs_on(tmp_path: Path, port: int) -> None:
    """The usual cause, a wrong --app-port, is named."""
    plan = {"command": app(port, "nolisten"), "app_port": port, "limits": {"app_listen_s": 0.2}}

    with driven(tmp_path, plan) as run:
        run.until("nolisten is up")
        run.until(f"Your app has not listened on 127.0.0.1:{port} for 0.2 s")
        assert run.process.poll() is None
        run.send(signal.SIGTERM)
        code = run.end()

    assert code == 0


@pytest.mark.rule("K-10", "K-14")
def test_without_a_command_the_sidecar_runs_alone(tmp_path: Path) -> None:
    """It is said so, and a signal ends it."""
    with driven(tmp_path, {}) as run:
        run.until("You're up and running! Dapr logs will appear here.")
        run.send(signal.SIGINT)
        code = run.end()

    assert code == 0
    assert "WARNING: no application command found.\n" in run.out
    assert "Exited App" not in run.out


def test_status_lines_can_be_json(tmp_path: Path, port: int) -> None:
    """One object a line, with Dapr's members."""
    with driven(tmp_path, {"command": app(port, "now0"), "as_json": True}) as run:
        run.end()

    objects = [json.loads(line) for line in run.out.splitlines() if line.startswith('{"time"')]
    assert {"info", "success"} == {found["status"] for found in objects}
    assert any(found["msg"].startswith("Starting Dapr with id a. HTTP Port: ") for found in objects)


def test_an_exported_endpoint_that_hides_the_sidecar_is_warned_about(tmp_path: Path) -> None:
    """SDKs prefer the endpoint to the port; it is the user's own, so it stays."""
    with driven(tmp_path, {"command": ["true"]}, DAPR_HTTP_ENDPOINT="http://elsewhere:1") as run:
        run.end()

    assert "⚠  DAPR_HTTP_ENDPOINT is set: SDKs will call http://elsewhere:1" in run.out
