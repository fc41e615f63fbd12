"""The command line as a whole: help, versions, mistakes, and what the sidecar's start must not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tieline
from tieline.cli.main import main

SOURCE = str(Path(tieline.__file__).parents[1])


def test_help_reads_well_on_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """All commands are listed; without arguments it is help too."""
    code = main([])
    shown = capsys.readouterr().out

    assert code == 0
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    assert max(map(len, shown.splitlines())) <= 80
    for command in ("run", "demo", "sidecar"):
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("command", ["run", "demo"])
def test_help_of_each_command_fits_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Long flags wrap."""
    assert main([command, "--help"]) == 0

    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """One line."""
    assert main(["--version"]) == 0

    assert capsys.readouterr().out == f"tieline {tieline.__version__}\n"


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
