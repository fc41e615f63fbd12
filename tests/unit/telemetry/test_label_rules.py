"""Rules rewrite label values as Dapr's do, and can neither hang nor surprise."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.telemetry.families import for_metric, metric_key
from tieline.telemetry.label_rules import MAX_VALUE, BadRule, compile_rules, rewriter


@pytest.mark.rule("O-25")
@pytest.mark.parametrize(
    ("pattern", "replacement", "value", "expected"),
    [
        ("/orders/[0-9]+", "/orders/ID", "/v1.0/invoke/x/method/orders/17", "/v1.0/invoke/x/method/orders/ID"),
        (".+", "/P", "/nope/x", "/P"),
        ("GET", "READ", "GET", "READ"),
        ("[0-9]+", "N", "/a/1/b/22", "/a/N/b/N"),
        ("nothing", "x", "/a", "/a"),
        (r"/users/([^/]+)/(\w+)", "/users/$2/$1", "/users/ann/cart", "/users/cart/ann"),
        (r"(?P<who>\w+)@", "${who}_at_", "ann@home", "ann_at_home"),
        (r"(a)|b", "<$1>", "ab", "<a><>"),
        ("a", "$$1", "a", "$1"),
        ("a", "$nobody-$7", "a", "-"),
        ("^/x$", "y", "/x", "y"),
        ("^/x$", "y", "/x\n", "/x\n"),
        (r"\d", "N", "٣", "٣"),
        ("[[/]", "-", "a[/b", "a--b"),
        (r"x\z", "y", "xx", "xy"),
        ("items?/[0-9]{2,3}", "I", "item/123", "I"),
    ],
)
def test_every_match_is_replaced(pattern: str, replacement: str, value: str, expected: str) -> None:
    """In the replacement a dollar stands for a group, as in Go."""
    assert rewriter(pattern, replacement)(value) == expected


@pytest.mark.rule("C-10", "O-25")
@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a(", "missing closing ): `a(`"),
        ("a)", "unexpected )"),
        ("[a", "missing closing ]"),
        ("*a", "missing argument to repetition operator: `*a`"),
        ("^*", "missing argument to repetition operator"),
        ("a**", "invalid nested repetition operator"),
        ("a*+", "invalid nested repetition operator"),
        ("a{2,1}", "min repeat"),
        ("a{1001}", "invalid repeat count"),
        ("a\\", "trailing backslash"),
        (r"(a)\1", r"invalid escape sequence \1"),
        (r"\Qa\E", r"invalid escape sequence \Q"),
        ("(?=a)", "not supported"),
        ("(?<!a)b", "not supported"),
        ("(?i)a", "not supported"),
        ("[[:alpha:]]", "not supported"),
        ("a" * 2000, "longer than"),
    ],
)
def test_what_is_no_expression_is_refused(pattern: str, said: str) -> None:
    """Also what Python would read in a way of its own."""
    with pytest.raises(BadRule) as error:
        rewriter(pattern, "x")

    assert str(error.value).startswith("error parsing regexp: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        "(a|aa)+$",
        "(a*){9}",
        "((a?)b?)+c",
        "a*a*a*a*b",
        ".*.*.*x",
        "a?" * 20 + "a" * 20,
        "(x{1,9}y?)*z",
    ],
)
def test_what_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(BadRule, match="could take too long"):
        rewriter(pattern, "x")


@pytest.mark.parametrize("pattern", [r".*x.*x[^z]+z", ".*.*b", "a*a*b", "/[^/]+/[^/]+/[^/]+/[^/]+/x$"])
@pytest.mark.parametrize("value", ["x" * 1000, "a" * 1000, "/a" * 500, "/" * 1000])
def test_what_passes_is_quick_whatever_the_value(pattern: str, value: str) -> None:
    """The worst of them takes some 50 ms on an idle machine."""
    rewrite = rewriter(pattern, "y")
    began = time.process_time()

    rewrite(value)

    assert time.process_time() - began < 1


@pytest.mark.parametrize("pattern", ["/a/[^/]+/b/[^/]+/c/[^/]+", "/users/.+/orders/.+/items", r"/v\d+/x\d+/y\d+/z\d+$"])
def test_what_people_write_passes(pattern: str) -> None:
    assert rewriter(pattern, "x")("/other") == "/other"


@given(st.text(alphabet="ab/.*+?()[]|^$\\{}1,d<P:!=", max_size=14), st.text(alphabet="ab/1\n", max_size=40))
def test_any_text_is_an_expression_or_refused_and_never_slow(pattern: str, value: str) -> None:
    try:
        rewrite = rewriter(pattern, "$1")
    except BadRule:
        return
    began = time.process_time()
    rewrite(value)
    assert time.process_time() - began < 1


def test_long_values_are_cut() -> None:
    assert len(rewriter("z", "")("y" * 5000)) == MAX_VALUE


@pytest.mark.rule("O-25")
def test_a_rule_finds_its_metric_by_any_of_its_names() -> None:
    names = ["dapr_http_server_request_count", "http/server/request_count", "http_server_request_count"]

    assert {metric_key(name) for name in names} == {"http/server/request/count"}


@pytest.mark.rule("C-10", "O-25")
def test_a_bad_rule_is_told_and_the_others_stay() -> None:
    """Dapr drops all rules from the bad one on."""
    rules, problems = compile_rules(
        [
            ("dapr_http_server_request_count", (("path", (("x", "a("),)), ("method", (("READ", "GET"),)))),
            ("no_such", (("x", (("a", "b"),)),)),
            ("http_server_latency", (("path", (("/P", ".+"),)), ("nobody", (("a", "b"),)))),
        ]
    )

    (problem,) = problems
    assert problem == (
        "failed to compile regex for rule http/server/request/countpath/x: "
        "error parsing regexp: missing closing ): `a(`"
    )
    labels = ("app_id", "method", "path", "status")
    ((index, rewrite),) = for_metric(rules, "dapr_http_server_request_count", labels)
    assert (labels[index], rewrite("GET")) == ("method", "READ")
    assert [labels[index] for index, _ in for_metric(rules, "dapr_http_server_latency", labels)] == ["path"]
    assert for_metric(rules, "dapr_http_server_response_count", labels) == ()
