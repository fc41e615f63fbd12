"""``tieline validate``: what is read, how it is shown, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from tieline.cli.main import main

GOOD = "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: a}\nspec: {baseUrl: 'http://x'}\n"
WARNED = GOOD.replace("//x", "//x/")
WRONG = GOOD.replace("http://", "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_good_files_end_with_0_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(GOOD)

    assert main(["validate", "a.yaml"]) == 0
    assert capsys.readouterr() == ("1 document in 1 file: nothing wrong.\n", "")


def test_every_mistake_is_a_line_that_editors_understand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(WRONG + "---\n" + WARNED.replace("name: a", "name: b"))
    (folder / "notes.txt").write_text("x")

    assert main(["validate", "."]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "notes.txt: warning: not loaded, since its name does not end in .yaml or .yml",
        "a.yaml:4: error: spec.baseUrl must begin with http:// or https://",
        '    hint: did you mean "http://x"?',
        "a.yaml:9: warning: spec.baseUrl ends with a slash: method x is called at //x",
        "    hint: leave out the last slash",
    ]
    assert err == "2 documents in 1 file: 1 error, 2 warnings.\n"


@pytest.mark.parametrize(("text", "strict", "code"), [(WARNED, False, 0), (WARNED, True, 1), (GOOD, True, 0)])
def test_warnings_are_errors_only_if_strict(text: str, strict: bool, code: int, folder: Path) -> None:
    (folder / "a.yaml").write_text(text)

    assert main(["validate", "a.yaml", *(["--strict"] if strict else [])]) == code


def test_json_has_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(WRONG)

    assert main(["validate", "-o", "json", "a.yaml", "none.yaml"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "files": 2,
        "documents": 1,
        "errors": 2,
        "warnings": 0,
        "notes": 0,
        "findings": [
            {
                "file": "a.yaml",
                "line": 4,
                "severity": "error",
                "message": "spec.baseUrl must begin with http:// or https://",
                "hint": 'did you mean "http://x"?',
            },
            {
                "file": "none.yaml",
                "line": None,
                "severity": "error",
                "message": "cannot be read: no such file or directory",
                "hint": None,
            },
        ],
    }


@pytest.mark.parametrize(("data", "code"), [(GOOD.encode(), 0), (WRONG.encode(), 1), (b"\0\1\xff", 1), (b"", 0)])
def test_standard_input_is_a_file_too(
    data: bytes, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    assert main(["validate", "-"]) == code
    out, err = capsys.readouterr()
    assert all(line.startswith(("<stdin>:", "    hint: ", "0 doc", "1 doc")) for line in (out + err).splitlines())


def test_a_file_given_twice_is_checked_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(GOOD)
    (folder / "b.yaml").symlink_to("a.yaml")

    assert main(["validate", "a.yaml", ".", str(folder)]) == 0
    assert "1 document in 1 file" in capsys.readouterr().out


def test_pipes_and_folders_that_may_not_be_read_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe.yaml")

    assert main(["validate", "pipe.yaml", "no\x1bthing"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pipe.yaml: error: cannot be read: it is not a regular file",
        "no\\x1bthing: error: cannot be read: no such file or directory",
    ]


@pytest.mark.rule("C-10")
@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("http: {pathMatching: ['/a/{b']}", "c.yaml:5: error: pathMatching: '/a/{b'"),
        ("http: {pathMatching: ['/{a}/b', '/a/{b}']}", "match the same path, and neither is the more specific one"),
        (
            "rules: [{name: m, labels: [{name: l, regex: {r: '['}}]}]",
            "c.yaml:5: error: metrics: failed to compile regex for rule ml/r: ",
        ),
    ],
)
def test_what_metrics_could_not_use_is_an_error(
    metric: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n"
    (folder / "c.yaml").write_text(f"{head}  metric: {{{metric}}}\n")

    assert main(["validate", "c.yaml"]) == 1
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "words", "hint"),
    [
        ("{component: sqlit}", "couldn't find name resolver sqlit/v1", 'did you mean "sqlite"?'),
        ("{component: consul}", "name resolver consul/v1 is not built", "set spec.nameResolution.component"),
        ("{component: mdns, version: v7}", "couldn't find name resolver mdns/v7", "use version v1"),
        ("{component: sqlite}", "input object cannot be cast", "correct spec.nameResolution.configuration: it needs"),
        ("{component: mdns, configuration: {trustNetwork: perhaps}}", "invalid value for 'trustNetwork'", "correct"),
    ],
)
def test_name_resolution_that_ends_a_start_is_an_error(
    names: str, words: str, hint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.yaml").write_text(
        f"kind: Configuration\napiVersion: dapr.io/v1alpha1\nspec:\n  nameResolution: {names}\n"
    )

    assert main(["validate", "c.yaml"]) == 1
    error, told, *_ = capsys.readouterr().out.splitlines()
    assert error.startswith(f"c.yaml:4: error: nameResolution: {words}")
    assert told.startswith(f"    hint: {hint}")


@pytest.mark.parametrize(
    "names",
    ["{component: registry}", "{component: MDNS}", "{component: sqlite, configuration: {connectionString: x.db}}"],
)
def test_name_resolution_that_can_be_is_none(names: str, folder: Path) -> None:
    (folder / "c.yaml").write_text(
        f"kind: Configuration\napiVersion: dapr.io/v1alpha1\nspec: {{nameResolution: {names}}}\n"
    )

    assert main(["validate", "--strict", "c.yaml"]) == 0
    assert [path.name for path in folder.iterdir()] == ["c.yaml"]
