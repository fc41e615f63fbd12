"""Recorded exchanges: what is sent, how the apps answer, and what may come of it; played and compared.

A folder of cases holds one file a group, one case a line. A case is a JSON object:

- ``name`` (``group/what``), ``rules`` that it shows, ``setup`` (default ``mesh``), ``to`` (a port, default
  ``caller.http``), ``send`` (a script), ``replies`` (a script for each request that reaches an app; the last one
  repeats), ``answers`` (how many final ones to wait for, default 1), ``beside`` (scripts of further clients, started
  before), ``h2`` (``prior knowledge`` or ``upgrade``: the answer comes over HTTP/2), ``exits`` (a sidecar that ends).
- ``want``: the outcomes that are right, any of them: ``answers`` (interim ones included), ``beside``, ``app`` (what
  the apps saw, in order), ``peak`` (calls at the apps at one time), ``exit_code``, and ``end`` (the connection
  afterwards: ``open`` or ``closed``). What an outcome does not name is not compared.
- A message in an outcome: ``status`` or ``at`` and ``line``; ``body``: text, or ``length`` and ``sha256``, or ``json``
  compared ``without`` some members; ``complete`` (default true; ``*`` for any), ``streamed`` (default false),
  ``trailers`` (default none); ``unsized`` if it must not say the length of a body. ``as`` names the profile of its
  headers, and ``headers`` says how it differs: values, ``null`` for a header of the profile that must not be there.
  Without ``as``, headers are not compared.
- ``{"like": pattern}`` stands for any text that the pattern matches in full; as a header, it may also be absent.

Bytes are texts with one character a byte; ``{{caller.app}}`` and the like stand for port numbers. The lengths and
encodings of transfer are not compared as headers: that a message can be read by them is what counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.contract.harness.apps import OK
from tests.contract.harness.mesh import Json, Mesh, get
from tests.contract.harness.stream import (
    Message,
    Step,
    Stream,
    answers_ping,
    play,
    read_body,
    read_head,
    read_http2_answer,
)

FOLDER: Final = Path(__file__).parents[1]
ANSWER_S: Final = 8.0
"""How long a client waits for an answer."""
SETTLE_S: Final = 1.5
"""How long apps may be busy, or the last request under way to them, once the client has its answer."""
APART_S: Final = 0.15
"""Clients side by side start so long after each other."""
CLOSE_S: Final = 2.0
"""How long a connection may do nothing before it counts as neither open nor closed."""
SIZES: Final = frozenset({"content-length", "transfer-encoding"})
TRANSFER: Final = SIZES | {"connection"}
_STILL_OPEN: Final = "GET /v1.0/healthz/outbound HTTP/1.1\r\nHost: localhost\r\n\r\n"

MESSAGES: Final = ("answers", "beside", "app")
PROFILES: Final[dict[str, Json]] = json.loads((FOLDER / "profiles.json").read_text())
SETUPS: Final[dict[str, Json]] = json.loads((FOLDER / "setups.json").read_text())


class Case(dict[str, Any]):
    """One recorded exchange, as the module's text describes it."""

    @property
    def name(self) -> str:
        return str(self["name"])

    @property
    def rules(self) -> list[str]:
        return list(self["rules"])

    @property
    def setup(self) -> str:
        return str(self.get("setup", "mesh"))


def load(group: str) -> list[Case]:
    """Return the cases of a group."""
    return [Case(case) for case in json.loads((FOLDER / "cases" / f"{group}.json").read_text())]


@dataclass
class Seen:
    """What came of a case."""

    answers: list[Message] = field(default_factory=list)
    beside: list[Message] = field(default_factory=list)
    app: list[Message] = field(default_factory=list)
    peak: int = 0
    end: str = ""
    exit_code: int | None = None


# ── playing ────────────────────────────────────────────────────────────────────────────────────────
def perform(mesh: Mesh, case: Case) -> Seen:
    """Play a case in its set-up, and return what came of it."""
    filled = Case(_filled({key: case[key] for key in case if key != "want"}, mesh.fill))
    mesh.stage.begin(filled.get("replies", [OK]))
    port = mesh.ports[case.get("to", "caller.http")]
    seen = Seen()
    others = [_Client(port, filled, send, probe=False) for send in filled.get("beside", ())]
    for other in others:
        other.start()
        other.join(APART_S)
    outcomes: list[Json] = case["want"]
    client = _Client(port, filled, filled["send"], probe=any("end" in outcome for outcome in outcomes))
    client.run()
    for other in others:
        other.join()
        seen.beside += other.answers
    seen.answers, seen.end = client.answers, client.end
    seen.app = mesh.stage.settled(min(len(outcome.get("app", ())) for outcome in outcomes), SETTLE_S)
    seen.peak = mesh.stage.peak
    if "exits" in case:
        seen.exit_code = mesh.exit_code(case["exits"])
    elif not any("app" in outcome for outcome in outcomes):
        # What is still under way to an app is in front of this call, and so not taken for the next case's.
        get(mesh.ports["caller.http"], "/v1.0/invoke/callee/method/behind")
    return seen


class _Client(threading.Thread):
    """A client with a connection of its own: sends its script while it reads the answers.

    Args:
        probe: See afterwards how the connection is.
    """

    def __init__(self, port: int, case: Case, send: Sequence[Step], *, probe: bool) -> None:
        super().__init__(daemon=True, name=f"client of {case.name}")
        self._probes = probe
        self._port = port
        self._case = case
        self._send = send
        self.answers: list[Message] = []
        self.end = ""

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_S) as sock:
            stream = Stream(sock)
            reader = threading.Thread(target=self._read_answers, args=(stream,), daemon=True)
            reader.start()
            goes_on = True
            with contextlib.suppress(OSError):  # closed while we still sent: what was answered counts
                goes_on = play(sock, self._send)
            reader.join(ANSWER_S + 1)
            if goes_on and self._probes:
                self.end = stream.ended or self._probe(sock, stream)

    def _read_answers(self, stream: Stream) -> None:
        left: int = self._case.get("answers", 1)
        http2: bool = self._case.get("h2") == "prior knowledge"
        first: str = self._send[0].get("text", "")
        while left:
            answer = read_http2_answer(stream) if http2 else read_head(stream)
            if answer is None:
                return
            interim = answer.status.startswith("1")
            if not http2:
                read_body(stream, answer, bodiless=interim or answer.status in ("204", "304") or first[:5] == "HEAD ")
            self.answers.append(answer)
            http2 = http2 or answer.status == "101"
            left -= not interim

    def _probe(self, sock: socket.socket, stream: Stream) -> str:
        """Say how the connection is: ``open`` if it serves another request."""
        sock.settimeout(CLOSE_S)
        with contextlib.suppress(OSError):
            if "h2" in self._case:
                return "open" if answers_ping(sock, stream) else "closed"
            play(sock, [{"text": _STILL_OPEN}])
            answer = read_head(stream)
            return "open" if answer is not None and answer.status == "204" else stream.ended
        return "closed"


# ── comparing ──────────────────────────────────────────────────────────────────────────────────────
def differences(case: Case, seen: Seen, fill: Callable[[str], str]) -> list[str]:
    """Return how what came of a case differs from the first outcome that is wanted; nothing if any of them came.

    ``fill`` puts meanings in place of placeholders.
    """
    found = [_outcome(_filled(_with_headers(outcome), fill), seen) for outcome in case["want"]]
    return [] if [] in found else found[0]


def _filled(value: Json, fill: Callable[[str], str]) -> Json:
    found: Json = json.loads(fill(json.dumps(value)))
    return found


def _with_headers(outcome: Json) -> Json:
    """Return an outcome whose messages have the headers of their profiles."""
    messages: Json = {
        name: [
            {**message, "headers": {**PROFILES[message["as"]], **message.get("headers", {})}}
            if "as" in message
            else message
            for message in outcome[name]
        ]
        for name in MESSAGES
        if name in outcome
    }
    return {**outcome, **messages}


def _outcome(want: Json, seen: Seen) -> list[str]:
    found = [
        f"{name}: wanted {want[name]!r}, got {getattr(seen, name)!r}"
        for name in ("end", "peak", "exit_code")
        if name in want and want[name] != getattr(seen, name)
    ]
    for name in MESSAGES:
        if name not in want:
            continue
        got: list[Message] = getattr(seen, name)
        if len(want[name]) != len(got):
            found.append(f"{name}: wanted {len(want[name])} messages, got {[message.start for message in got]}")
        for number, (left, right) in enumerate(zip(want[name], got, strict=False), start=1):
            found += [f"{name} {number}: {text}" for text in _message(left, right)]
    return found


def _message(want: Json, got: Message) -> list[str]:
    facts = {
        "status": got.status,
        "at": got.at,
        "line": got.start,
        "complete": got.complete,
        "streamed": got.streamed,
        "trailers": got.trailers,
        "unsized": got.values().keys().isdisjoint(SIZES),
    }
    wanted = {"complete": True, "streamed": False, "trailers": "", **want}
    found = [
        f"{name}: wanted {wanted[name]!r}, got {fact!r}"
        for name, fact in facts.items()
        if name in wanted and not _fits(wanted[name], fact)
    ]
    if "headers" in want:
        headers: Json = want["headers"]
        values = got.values()
        # To an answer, and to nothing that an app sees, a sidecar may add a date and headers of Tieline's own.
        added = {name for name in values if name == "date" or name.startswith("tieline-")} if got.at == "" else set()
        names = values.keys() - TRANSFER - added
        found += [
            f"header {name}: wanted {headers.get(name)!r}, got {values.get(name)!r}"
            for name in sorted(names | headers.keys())
            if not _header_fits(headers.get(name), values.get(name))
        ]
    if "body" in want and not _body_fits(want["body"], got.body):
        found.append(f"body: wanted {want['body']!r}, got {got.body[:2000]!r}")
    return found


def _fits(want: object, got: object) -> bool:
    match want:
        case {"like": str() as pattern}:
            return re.fullmatch(pattern, str(got), re.DOTALL) is not None
        case "*":
            return True
        case int() if isinstance(got, str):
            return str(want) == got
        case _:
            return want == got


def _header_fits(want: Any, got: list[str] | None) -> bool:
    match want:
        case {"like": str() as pattern}:
            return all(re.fullmatch(pattern, value) for value in got or ())
        case _:
            return bool(want == got)


def _body_fits(want: Any, got: bytes) -> bool:
    match want:
        case {"sha256": str() as digest, "length": int() as length}:
            return len(got) == length and hashlib.sha256(got).hexdigest() == digest
        case {"json": str() as text, "without": list() as paths}:
            return _without(text, paths) == _without(got.decode("latin-1"), paths)
        case _:
            return _fits(want, got.decode("latin-1"))


def _without(text: str, paths: Sequence[str]) -> str:
    """Return a JSON document less the members named by dotted paths, its members in order, its lists in any.

    What is no JSON is returned as it is, and so is what stands behind the document: a line end matters.
    """
    try:
        document, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return text
    for path in paths:
        *parents, last = path.split(".")
        node = document
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    return json.dumps(_ordered(document)) + text[end:]


def _ordered(document: Any) -> Any:
    match document:
        case dict():
            return {key: _ordered(value) for key, value in document.items()}
        case list():
            return sorted(map(_ordered, document), key=repr)
        case _:
            return document
