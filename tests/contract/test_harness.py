"""The comparison of recorded exchanges notices what a client or an app would notice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.contract.harness.cases import Case, Seen, differences
from tests.contract.harness.stream import Message

ANSWER = Message("HTTP/1.1 200 OK", [("content-type", "text/plain"), ("content-length", "2"), ("date", "today")], b"ok")
REQUEST = Message("GET /x HTTP/1.1", [("host", "127.0.0.1:12345")], at="caller.app")
SEEN = Seen(answers=[ANSWER], app=[REQUEST], end="open")
WANT: dict[str, object] = {
    "answers": [{"status": 200, "body": "ok", "as": "relayed"}],
    "end": "open",
    "app": [
        {
            "at": "caller.app",
            "line": "GET /x HTTP/1.1",
            "body": "",
            "as": "self",
            "headers": {"dapr-caller-app-id": None, "dapr-callee-app-id": None, "dapr-caller-namespace": None},
        }
    ],
}


def fill(text: str) -> str:
    return text.replace("{{caller.app}}", "12345")


def found(seen: Seen, *want: dict[str, object]) -> list[str]:
    return differences(Case(name="a/case", rules=[], want=list(want or (WANT,))), seen, fill)


def answering(answer: Message) -> Seen:
    return replace(SEEN, answers=[answer])


def asking(request: Message) -> Seen:
    return replace(SEEN, app=[request])


def test_what_is_as_wanted_has_no_differences() -> None:
    assert found(SEEN) == []


@pytest.mark.parametrize(
    "seen",
    [
        answering(replace(ANSWER, start="HTTP/1.1 500 Internal Server Error")),
        answering(replace(ANSWER, body=b"ok\n")),
        answering(replace(ANSWER, complete=False)),
        answering(replace(ANSWER, streamed=True)),
        answering(replace(ANSWER, trailers="x: 1\r\n")),
        answering(replace(ANSWER, headers=[*ANSWER.headers, ("x-new", "1")])),
        answering(replace(ANSWER, headers=[*ANSWER.headers, ("content-type", "text/plain")])),
        answering(replace(ANSWER, headers=[("content-type", "text/html")])),
        answering(replace(ANSWER, headers=[])),
        answering(replace(ANSWER, headers=[*ANSWER.headers, ("traceparent", "nonsense")])),
        asking(replace(REQUEST, at="callee.app")),
        asking(replace(REQUEST, start="GET /y HTTP/1.1")),
        asking(replace(REQUEST, headers=[("host", "127.0.0.1:54321")])),
        asking(replace(REQUEST, headers=[*REQUEST.headers, ("date", "today")])),
        asking(replace(REQUEST, headers=[*REQUEST.headers, ("tieline-hop", "x")])),
        replace(SEEN, answers=[]),
        replace(SEEN, app=[REQUEST, REQUEST]),
        replace(SEEN, end="closed"),
    ],
)
def test_what_is_not_as_wanted_is_one_difference(seen: Seen) -> None:
    assert len(found(seen)) == 1


@pytest.mark.parametrize(
    "add",
    [
        ("connection", "keep-alive"),
        ("tieline-hop", "app"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
    ],
)
def test_what_a_sidecar_may_add_to_an_answer_is_no_difference(add: tuple[str, str]) -> None:
    assert found(answering(replace(ANSWER, headers=[*ANSWER.headers, add]))) == []


def test_any_of_several_outcomes_will_do() -> None:
    refused: dict[str, object] = {"answers": [{"status": {"like": "400|501"}}], "app": []}
    seen = Seen(answers=[Message("HTTP/1.1 501 Not Implemented")], end="closed")

    assert found(seen, WANT, refused) == []
    assert found(seen, WANT) != []


def test_json_may_hold_what_is_not_compared() -> None:
    body = {"json": '{"id":"a","version":"1"}\n', "without": ["version"]}
    want: dict[str, object] = {"answers": [{"status": 200, "body": body}]}

    assert found(answering(replace(ANSWER, body=b'{"id":"a","version":"2"}\n')), want) == []
    assert found(answering(replace(ANSWER, body=b'{"id":"a","version":"2"}')), want) != []
    assert found(answering(replace(ANSWER, body=b"no JSON")), want) != []


def test_an_answer_may_have_to_be_without_a_length() -> None:
    want: dict[str, object] = {"answers": [{"status": 200, "unsized": True}]}

    assert found(SEEN, want) != []
    assert found(answering(replace(ANSWER, headers=[])), want) == []
