"""What is told of our app, beside what a daprd in its place told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.mdns import RECORDED
from tieline.names.mdns.responder import MAX_ANSWERED, Registration, Responder
from tieline.wire.dns import PTR, Message, Question, Text, parse, render

ORDERS = Registration("orders", "default", "box", 32250, "127.0.0.1", 3502)


def by_name(case: dict[str, Any]) -> str:
    return str(case["name"])


def responder(**changes: Any) -> Responder:
    return Responder(ORDERS._replace(**changes))


@pytest.mark.rule("N-15", "N-19", "N-21")
@pytest.mark.parametrize("case", RECORDED["registration"], ids=by_name)
def test_announcements_and_goodbye_are_daprds_to_the_byte(case: dict[str, Any]) -> None:
    it = responder(host=case["host"], pid=case["pid"], address=case["announces"], port=case["port"])

    assert render(it.announcement()).hex() == case["after_start"][-1]
    assert [render(it.goodbye(), compress=False).hex()] == case["at_stop"]


@pytest.mark.rule("N-19")
def test_probes_are_daprds_to_the_byte() -> None:
    case = RECORDED["registration"][0]
    first, second, *_ = case["after_start"]
    it = responder(host=case["host"], pid=case["pid"], address=case["announces"], port=case["port"])

    assert render(it.probe(int(first[:4], 16)), compress=False).hex() == first == second


@pytest.mark.rule("N-15", "N-20")
@pytest.mark.parametrize("case", RECORDED["responder"], ids=by_name)
def test_each_recorded_question_is_answered_as_daprd_answered_it(case: dict[str, Any]) -> None:
    query = bytes.fromhex(case["query"])
    if case["name"] in ("garbage", "truncated question"):
        with pytest.raises(ValueError, match=r"packet"):
            parse(query)
        assert case["answers"] == []
        return

    replies = list(responder().replies(parse(query)))

    assert [(render(reply.message).hex(), reply.unicast) for reply in replies] == [
        (answer["hex"], answer["unicast"]) for answer in case["answers"]
    ]


@pytest.mark.parametrize("case", [case for case in RECORDED["responder"] if case["answers"]], ids=by_name)
def test_no_question_for_us_is_passed_over_unread(case: dict[str, Any]) -> None:
    assert responder().may_concern(bytes.fromhex(case["query"]))


def test_a_packet_without_our_label_is_passed_over_unread() -> None:
    assert not responder().may_concern(render(Message(questions=[Question((b"shop", b"local"), PTR)])))


def test_a_packet_full_of_questions_has_only_so_many_answered() -> None:
    message = Message(questions=[Question((b"orders", b"local"), PTR)] * 200)

    assert len(list(responder().replies(message))) == MAX_ANSWERED


@pytest.mark.rule("N-53")
@pytest.mark.parametrize(
    ("namespace", "strings"),
    [("default", (b"orders",)), ("blue", (b"orders", b"tieline-ns=blue")), ("", (b"orders", b"tieline-ns="))],
)
def test_a_namespace_is_told_behind_the_id_unless_it_is_the_usual_one(namespace: str, strings: tuple[bytes]) -> None:
    texts = [record for record in responder(namespace=namespace).announcement().answers if isinstance(record, Text)]

    assert [text.strings for text in texts] == [strings]


def test_long_host_names_and_namespaces_are_cut_to_what_fits() -> None:
    it = responder(host="h" * 80, alias="a" * 64 + ".b", namespace="n" * 300)

    assert parse(render(it.announcement())).answers[0].name[0] == b"h" * 57 + b":32250"
