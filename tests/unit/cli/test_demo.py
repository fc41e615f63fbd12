"""``tieline demo`` with real processes and a stand-in for the sidecars."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import tieline
from tieline.cli.console import Console
from tieline.cli.demo import STEPS, Answer, Step, _is_right, demo

HERE = Path(__file__).parent
SOURCE = str(Path(tieline.__file__).parents[1])
FAKE = (sys.executable, str(HERE / "fake_sidecar.py"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder that the demo uses, and a way for its processes to import us."""
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_worked_example_is_shown_with_what_repeats_it(place: Path) -> None:
    """All answers right: 0, and nothing is left behind."""
    out, err = io.BytesIO(), io.BytesIO()

    code = demo(Console(out=out, err=err), sidecar_command=FAKE)

    shown = out.getvalue().decode()
    assert (code, err.getvalue().decode()) == (0, ""), shown
    assert "/v1.0/invoke/mathService/method/add \\\n     -H 'Content-Type: application/json' -d '{" in shown
    assert shown.count("   200 33  (") == 6
    assert "/v1.0/invoke/mathGrpc/method/add" in shown
    assert "/v1.0/invoke/mathService.default/method/add" in shown
    assert "/v1.0/invoke/mathHTTPEndpoint/method/add" in shown
    assert re.search(r"/v1.0/invoke/http://127.0.0.1:\d+/method/add", shown)
    assert "   why?         tieline-cause: name-unknown\n   what to do?  tieline-hint: start it\n" in shown
    assert "All answers were right." in shown
    assert list(place.iterdir()) == []


def test_a_sidecar_that_does_not_start_is_told_with_its_last_lines(place: Path) -> None:
    """1, and nothing is left behind."""
    out, err = io.BytesIO(), io.BytesIO()

    code = demo(Console(out=out, err=err), sidecar_command=(*FAKE, "--behave", "refuse"))

    assert code == 1
    assert '❌  "mathService" could not start (exit code 1). Its last lines:\n' in err.getvalue().decode()
    assert "parameter app-id cannot contain dots" in err.getvalue().decode()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "answer", "right"),
    [
        (STEPS[0], Answer(200, "33\n", {}, 0.0), True),
        (STEPS[0], Answer(200, "34", {}, 0.0), False),
        (STEPS[0], Answer(500, "33", {"tieline-cause": "app-broken"}, 0.0), False),
        (STEPS[-1], Answer(500, "{}", {"tieline-cause": "name-unknown"}, 0.0), True),
        (STEPS[-1], Answer(500, "{}", {}, 0.0), False),
    ],
)
def test_an_answer_is_right_only_with_status_body_and_cause(step: Step, answer: Answer, right: bool) -> None:
    """A failure that does not explain itself is a wrong answer."""
    assert _is_right(step, answer) is right


def test_with_keep_it_stays_until_it_is_interrupted(place: Path) -> None:
    """SIGTERM ends it in good order too."""
    code = (
        "import sys; from tieline.cli.console import Console; from tieline.cli.demo import demo;"
        f"sys.exit(demo(Console(), keep=True, sidecar_command={FAKE!r}))"
    )
    environment = {**os.environ, "TMPDIR": str(place)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    with process, process.stdout as output:
        lines: list[bytes] = []
        while b"Still up" not in (line := output.readline()):
            assert line, b"".join(lines)
            lines.append(line)
        process.send_signal(signal.SIGTERM)
        rest = output.read().decode()

    assert process.returncode == 0, rest
    assert "All answers were right." in rest
    assert list(place.iterdir()) == []
