"""The command line as a whole: help, versions, mistakes, and what the sidecar's start must not import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tieline
from tieline.cli.main import main
from tieline.names.registry import sidecar_entry
from tieline.names.sidecars import SidecarFacts, process_space, process_start

SOURCE = str(Path(tieline.__file__).parents[1])


def test_help_reads_well_on_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """All commands are listed; without arguments it is help too."""
    code = main([])
    shown = capsys.readouterr().out

    assert code == 0
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    assert max(map(len, shown.splitlines())) <= 80
    for command in ("run", "list", "invoke", "stop", "doctor", "validate", "demo", "sidecar", "version", "completion"):
        assert f"\n  {command} " in shown


@pytest.mark.parametrize(
    "command", ["run", "list", "invoke", "stop", "doctor", "validate", "demo", "version", "completion"]
)
def test_help_of_each_command_fits_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Long flags wrap."""
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out

    assert max(map(len, shown.splitlines())) <= 80
    assert main([command, "-h"]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """One line."""
    assert main(["--version"]) == 0

    assert capsys.readouterr().out == f"tieline {tieline.__version__}\n"


@pytest.mark.rule("K-3")
def test_versions_as_dapr_tells_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Command and sidecar are one package."""
    assert main(["version"]) == 0
    text = capsys.readouterr().out
    assert main(["version", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert text == f"CLI version: {tieline.__version__}\nRuntime version: {tieline.__version__}\n"
    assert document == {"Cli version": tieline.__version__, "Runtime version": tieline.__version__}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["rnu"], 'tieline: unknown command "rnu"; did you mean "run"? See "tieline --help".'),
        (["xyzzy"], 'tieline: unknown command "xyzzy". See "tieline --help".'),
        (["--nope"], "tieline: No such option '--nope'. See \"tieline --help\"."),
        (["run", "--app-id"], "tieline run: Option '--app-id' requires an argument. See \"tieline run --help\"."),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy_and_2(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error; no usage text scrolls it away."""
    code = main(argv)

    captured = capsys.readouterr()
    assert code == 2
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_a_port_that_is_none_is_told_with_what_would_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The flag is named by both its names."""
    code = main(["run", "-p", "70000"])

    told = "Invalid value for '--app-port' / '-p': '70000' is no port: give a number from 1 to 65535."
    assert code == 2
    assert capsys.readouterr().err == f'tieline run: {told} See "tieline run --help".\n'


def in_python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_way_to_the_sidecar_imports_neither_click_nor_rich() -> None:
    """They would cost each sidecar memory and start-up time."""
    code = (
        "import sys, types; fake = types.ModuleType('tieline.cli.sidecar'); fake.main = lambda argv: print(argv) or 3;"
        "sys.modules['tieline.cli.sidecar'] = fake; import tieline.cli; tieline.cli.sidecar = fake;"
        "from tieline.cli.main import main; code = main(['sidecar', '--app-id', 'x']);"
        "print(code, sorted({'click', 'rich', 'asyncio'} & set(sys.modules)))"
    )

    result = in_python(code)

    assert result.stdout == "['--app-id', 'x']\n3 []\n", result.stderr


def test_python_m_tieline_is_the_command() -> None:
    """Its exit code too."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}

    result = subprocess.run(
        [sys.executable, "-m", "tieline", "nope"], env=environment, capture_output=True, text=True, check=False
    )

    assert result.returncode == 2
    assert result.stderr.startswith('tieline: unknown command "nope"')


# --- completion ---


def completed(words: str, state: Path, *, kinds: bool = False) -> list[str]:
    """Return what a shell is offered for the last word."""
    environment = {
        **os.environ,
        "PYTHONPATH": SOURCE,
        "XDG_STATE_HOME": str(state),
        "_TIELINE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-m", "tieline"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    lines = [line for line in result.stdout.splitlines() if line]
    return lines if kinds else [line.partition(",")[2] for line in lines]


def test_a_shell_completes_commands_flags_and_app_ids_that_run(tmp_path: Path) -> None:
    """Also after words that make no sense."""
    facts = SidecarFacts(app_id="orders", pid=os.getpid(), process_start=process_start(os.getpid()) or 0)
    facts = replace(facts, process_space=process_space(), started=time.time())
    sidecar_entry(facts, {"XDG_STATE_HOME": str(tmp_path)}).write()

    assert completed("tieline st", tmp_path) == ["stop"]
    assert "--app-port" in completed("tieline sidecar --app", tmp_path)
    assert completed("tieline invoke o", tmp_path) == ["orders"]
    assert completed("tieline invoke orders m --from ", tmp_path) == ["orders"]
    assert completed("tieline stop x", tmp_path) == []
    assert completed("tieline list --output ", tmp_path) == ["table", "json", "yaml"]
    assert completed("tieline nonsense -x ", tmp_path) is not None
    assert completed("tieline run --app-protocol h", tmp_path) == ["http", "https", "h2c"]
    assert completed("tieline sidecar --log-level w", tmp_path) == ["warn"]
    assert completed("tieline invoke orders m -v g", tmp_path) == ["get"]
    assert "sleep" in completed("tieline run --app-id x -- slee", tmp_path)
    assert "sleep" in completed("tieline run slee", tmp_path)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("tieline run --config co", "file"),
        ("tieline sidecar --config co", "file"),
        ("tieline doctor -c co", "file"),
        ("tieline invoke orders m -f co", "file"),
        ("tieline validate co", "file"),
        ("tieline run -- python3 co", "file"),
        ("tieline run -- ./co", "file"),
        ("tieline run --resources-path co", "dir"),
        ("tieline sidecar --resources-path co", "dir"),
        ("tieline doctor --resources-path co", "dir"),
    ],
)
def test_a_shell_is_left_to_complete_files_and_folders(words: str, kind: str, tmp_path: Path) -> None:
    assert completed(words, tmp_path, kinds=True) == [f"{kind},{words.rpartition(' ')[2]}"]


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["run", "-app-id", "q", "--", "sleep", "1"], "--app-id"),
        (["run", "--log-level", "info", "-app-port=5", "--", "sleep", "1"], "--app-port"),
        (["invoke", "-verb", "GET", "orders", "m"], "--verb"),
    ],
)
def test_a_long_flag_with_one_dash_is_told_to_take_two(
    argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert f'did you mean "{meant}"?' in capsys.readouterr().err


def test_help_can_be_asked_for_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert main(["help", "run"]) == 0
    assert "Start an app with a sidecar beside it." in capsys.readouterr().out
    assert main(["help", "sidecar"]) == 0
    assert "Usage of tieline sidecar" in capsys.readouterr().err


def test_a_damaged_registry_does_not_disturb_the_shell(tmp_path: Path) -> None:
    """Then there is nothing to offer."""
    (tmp_path / "tieline").mkdir()
    (tmp_path / "tieline" / "registry.db").write_bytes(b"x" * 5000)

    assert completed("tieline stop ", tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_one_that_the_shell_takes(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as the shell is there to ask."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out

    assert "_TIELINE_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_is_told_in_words() -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tieline", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )

    told = "tieline: standard output cannot be written: no space left on device\n"
    assert (result.returncode, result.stderr) == (1, told)


def test_the_reader_that_is_gone_is_no_news() -> None:
    """``tieline --help | true``."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    reading, writing = os.pipe()
    os.close(reading)

    result = subprocess.run(
        [sys.executable, "-m", "tieline", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    os.close(writing)

    assert (result.returncode, result.stderr) == (141, b"")
