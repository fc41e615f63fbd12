"""Log lines: Dapr's text and JSON, and nothing a value can do to them."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.errors import ConfigError
from tieline.telemetry import logs
from tieline.telemetry.logs import FATAL, configure, render_json, render_text

TIME = re.compile(r'^time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" ')


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """The loggers are the process's own: leave them as they were."""
    names = ("dapr", "asyncio")
    before = {name: (list((log := logging.getLogger(name)).handlers), log.level, log.propagate) for name in names}
    yield
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


class Sink:
    """Remembers each write; takes at most so many bytes at once."""

    def __init__(self, at_once: int | None = 1 << 20) -> None:
        self.writes: list[bytes] = []
        self._at_once = at_once

    def write(self, data: bytes, /) -> int | None:
        if self._at_once is None:
            return None
        self.writes.append(data[: self._at_once])
        return len(self.writes[-1])

    @property
    def text(self) -> str:
        return b"".join(self.writes).decode()


def configured(level: str = "info", *, as_json: bool = False) -> Sink:
    sink = Sink()
    configure(level=level, as_json=as_json, app_id="app-a", instance="box", version="1.18.3", stream=sink)
    return sink


@pytest.mark.rule("O-41")
def test_text_is_logfmt_as_daprd_writes_it() -> None:
    """Time, level and message first, then the fields by name, values quoted when they must be."""
    sink = configured()

    logging.getLogger("dapr.runtime.http").info("Enabled %s HTTP middleware", "metrics")
    logging.getLogger("dapr.contrib").info(
        'metric spec: {"enabled":true}', extra={"fields": {"component": "nr (sqlite/v1)"}}
    )

    first, second = (TIME.sub("", line) for line in sink.text.splitlines())
    common = "scope={} type=log ver=1.18.3"
    assert TIME.match(sink.text)
    assert first == (
        'level=info msg="Enabled metrics HTTP middleware" app_id=app-a instance=box '
        + common.format("dapr.runtime.http")
    )
    assert second == (
        r'level=info msg="metric spec: {\"enabled\":true}" app_id=app-a component="nr (sqlite/v1)" instance=box '
        + common.format("dapr.contrib")
    )


@pytest.mark.rule("O-41")
def test_json_is_one_object_a_line_with_sorted_keys() -> None:
    """Numbers stay numbers."""
    sink = configured(as_json=True)

    logging.getLogger("dapr.runtime").warning("Loading endpoints…", extra={"fields": {"code": 200, "verb": b"GET"}})

    found = json.loads(sink.text)
    assert list(found) == sorted(found)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", found.pop("time"))
    assert found == {
        "app_id": "app-a",
        "code": 200,
        "instance": "box",
        "level": "warning",
        "msg": "Loading endpoints…",
        "scope": "dapr.runtime",
        "type": "log",
        "ver": "1.18.3",
        "verb": "GET",
    }
    assert "Loading endpoints…" in sink.text


@pytest.mark.rule("O-40")
@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error", "fatal"]),
        ("INFO", ["info", "warning", "error", "fatal"]),
        ("Warn", ["warning", "error", "fatal"]),
        ("error", ["error", "fatal"]),
        ("fatal", ["fatal"]),
    ],
)
def test_levels_and_their_names(level: str, written: list[str]) -> None:
    """What is below the level costs no formatting."""
    sink = configured(level)
    logger = logging.getLogger("dapr.runtime")

    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, FATAL):
        logger.log(number, "x")

    assert re.findall(r"level=(\w+)", sink.text) == written


@pytest.mark.rule("O-40")
@pytest.mark.parametrize("level", ["loud", "", "warning "])
def test_an_unknown_level_is_refused_in_daprs_words(level: str) -> None:
    """And logging works, so that the refusal can be logged."""
    sink = Sink()

    with pytest.raises(ConfigError) as caught:
        configure(level=level, stream=sink)
    logging.getLogger("dapr.runtime").log(FATAL, "%s", caught.value)

    assert f'level=fatal msg="invalid value for --log-level: {level}' in sink.text


@pytest.mark.rule("O-40")
def test_a_log_file_is_appended_to(tmp_path: Path) -> None:
    """It is made with mode 0644, and nothing goes to standard output any more."""
    path, sink = tmp_path / "x.log", Sink()
    before = os.umask(0)
    try:
        configure(log_file=str(path), stream=sink)
    finally:
        os.umask(before)
    logging.getLogger("dapr.runtime").info("first")

    configure(log_file=str(path), stream=sink)
    logging.getLogger("dapr.runtime").info("second")

    assert re.findall(r"msg=(\w+)", path.read_text()) == ["first", "second"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert sink.writes == []


@pytest.mark.rule("O-40")
@pytest.mark.parametrize(("name", "reason"), [("no/x.log", "no such file or directory"), ("", "is a directory")])
def test_a_log_file_that_cannot_be_opened_is_refused_in_daprs_words(tmp_path: Path, name: str, reason: str) -> None:
    """And logging works on standard output, so that the refusal can be logged."""
    path, sink = str(tmp_path / name), Sink()

    with pytest.raises(ConfigError) as caught:
        configure(log_file=path, stream=sink)
    logging.getLogger("dapr.runtime").log(FATAL, "%s", caught.value)

    assert str(caught.value) == f'failed to open log file "{path}": open {path}: {reason}'
    assert sink.text.count("level=fatal") == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_a_value_cannot_forge_a_line_nor_steer_a_terminal(as_json: bool) -> None:
    """Line ends, escapes, C1 controls and bidirectional marks are written out."""
    sink = configured(as_json=as_json)
    evil = 'x" level=fatal\ntime="now" level=fatal msg=forged \x1b[2J\x9b31m\u202e\u2028\r\x00\x7f'

    logging.getLogger("dapr.runtime").info("called %s", evil, extra={"fields": {"method": evil.encode() + b"\xff"}})

    (line,) = sink.text.splitlines()
    assert line.isprintable()
    if as_json:
        assert json.loads(line)["msg"] == "called " + evil
    else:
        assert r"forged \x1b[2J\u009b31m\u202e\u2028\r\x00\x7f" in line
        assert r"\xff" in line


@given(st.text(), st.binary())
def test_any_value_gives_one_printable_line(text: str, octets: bytes) -> None:
    """In both forms, and JSON gives back the text."""
    fields = {"time": "t", "level": "info", "msg": text, "b": octets, "scope": "s"}

    as_text, as_json = render_text(fields), render_json(fields)

    assert as_text.isprintable()
    assert as_json.isprintable()
    as_json.encode()
    assert json.loads(as_json)["msg"] == text


def test_each_line_leaves_in_one_write_whatever_its_length() -> None:
    """Several processes share one terminal or file; a sink that takes only a part gets the rest after it."""
    sink, slow = configured(), Sink(at_once=7)

    logging.getLogger("dapr.runtime").info("y" * 100_000)
    configure(stream=slow)
    logging.getLogger("dapr.runtime").info("hello")

    assert len(sink.writes) == 1
    assert sink.text.endswith(" type=log ver=1.18.3\n")
    assert slow.text.count("\n") == 1


def test_a_closed_pipe_or_a_full_one_raises_nothing() -> None:
    """The reader may go, the sidecar must stay."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with io.FileIO(write_end, "w") as gone:
        configure(stream=gone)
        logging.getLogger("dapr.runtime").info("lost")
    logging.getLogger("dapr.runtime").info("lost too")

    configure(stream=Sink(at_once=None))
    logging.getLogger("dapr.runtime").info("lost as well")


def test_an_exception_stays_one_line() -> None:
    """With type and text as a field, and the stack escaped."""
    sink = configured()

    try:
        raise ValueError("bad\nthing")
    except ValueError:
        logging.getLogger("dapr.runtime").exception("failed")

    (line,) = sink.text.splitlines()
    assert r'error="ValueError: bad\nthing"' in line
    assert r"Traceback (most recent call last):\n" in line


def test_arguments_that_do_not_fit_lose_no_line() -> None:
    """A bug in a log call is seen, and breaks nothing."""
    sink = configured()

    logging.getLogger("dapr.runtime").info("%d calls", "many")  # noqa: PLE1205, RUF100

    assert "msg=\"%d calls ('many',)\"" in sink.text


def test_fields_of_a_line_cannot_replace_its_own() -> None:
    """Level, scope and app ID are ours."""
    sink = configured()

    logging.getLogger("dapr.runtime").info("x", extra={"fields": {"level": "fatal", "app_id": "y", "a b=": 1}})

    assert " level=info msg=x a_b_=1 app_id=app-a " in sink.text


@pytest.mark.parametrize(("no_color", "colourful"), [("", True), ("1", False)])
def test_a_terminal_gets_a_coloured_level(monkeypatch: pytest.MonkeyPatch, no_color: str, colourful: bool) -> None:
    """NO_COLOR is heeded."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    sink = Sink()
    monkeypatch.setattr(sink, "isatty", lambda: True, raising=False)

    configure(stream=sink)
    logging.getLogger("dapr.runtime").error("x")

    assert ("level=\x1b[31merror\x1b[0m" in sink.text) == colourful


def test_lines_of_asyncio_look_like_ours() -> None:
    """It reports tasks that failed unseen; also a second configuration writes each line once."""
    configured()
    sink = configured(as_json=True)

    logging.getLogger("asyncio").error("Task exception was never retrieved")

    assert json.loads(sink.text)["scope"] == "asyncio"


def test_standard_output_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    """Unbuffered, below Python's own stream."""
    configure()

    logging.getLogger("dapr.runtime").info("here")

    assert "msg=here" in capfd.readouterr().out
    assert logs.LEVELS["fatal"] == logging.CRITICAL


def test_a_kind_of_error_in_place_of_one_loses_no_line() -> None:
    """As aiofastnet reports a handshake that broke off."""
    sink = configured()

    logging.getLogger("dapr.runtime").error("broken", exc_info=(type, ConnectionResetError, None))  # type: ignore[arg-type]

    assert "msg=broken" in sink.text
    assert "Traceback" not in sink.text
