"""What paths count as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.telemetry.families import OVERFLOW
from tieline.telemetry.path_labels import AS_THEY_ARE, MAX_KNOWN, MAX_PATH_BYTES, PathLabels
from tieline.telemetry.path_patterns import PathPatterns


def label(labels: PathLabels, path: bytes) -> str:
    """Return it as a call finds it."""
    known = labels.known.get(path, labels.otherwise)
    return labels.find(path) if known is None else known


def of_requests(*, increased: bool, patterns: list[str] | None = None) -> PathLabels:
    return PathLabels(increased=increased, patterns=PathPatterns(patterns) if patterns else None, encoded=True)


@pytest.mark.rule("O-23")
@pytest.mark.parametrize("increased", [True, False])
@pytest.mark.parametrize("patterns", [None, ["/"], ["/dapr/{x}"]])
def test_some_paths_are_always_themselves(increased: bool, patterns: list[str] | None) -> None:
    labels = of_requests(increased=increased, patterns=patterns)
    methods = PathLabels(increased=increased, patterns=PathPatterns(patterns) if patterns else None, encoded=False)

    for path in AS_THEY_ARE:
        assert label(labels, path.encode()) == path
        assert label(methods, path[1:].encode()) == path


@pytest.mark.rule("O-23")
def test_without_increased_cardinality_a_path_is_empty_and_never_looked_at() -> None:
    labels = of_requests(increased=False)

    assert label(labels, b"/v1.0/invoke/a/method/b") == ""
    assert len(labels.known) == len(AS_THEY_ARE)


@pytest.mark.rule("O-23")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/v1.0/invoke/callee/method//double//slash", "/v1.0/invoke/callee/method/double/slash"),
        (b"/v1.0/invoke/http://127.0.0.1:3595/method/x", "/v1.0/invoke/http:/127.0.0.1:3595/method/x"),
        (b"/v1.0/invoke/a/method/b%20c%2Fd", "/v1.0/invoke/a/method/b c/d"),
        (b"/x%ff", "/x\N{REPLACEMENT CHARACTER}"),
        (b"/orders/19", "/orders/19"),
        (b"/v1.0/state/store/key/17", "/v1.0/state/store"),
        (b"/v1.0/state/store", "/v1.0/state/store"),
        (b"/v1.0/secrets/vault/name", "/v1.0/secrets/vault"),
        (b"/v1.0/actors/Cat/felix/method/feed", "/v1.0/actors/Cat/{id}/method/feed"),
        (b"/v1.0-alpha1/workflows/dapr/42/start", "/v1.0-alpha1/workflows/dapr/{instanceId}/start"),
        (b"/v1.0/metadata/k/and/more", "/v1.0/metadata/k/and/more"),
        (b"/state/a/b/c/d", "/state/a/b/c/d"),
        (b"*", "*"),
        (b"/" + b"x" * MAX_PATH_BYTES, OVERFLOW),
    ],
)
def test_with_increased_cardinality_it_is_the_path(path: bytes, expected: str) -> None:
    """Cleaned of what makes one thing look like many."""
    assert label(of_requests(increased=True), path) == expected


@pytest.mark.rule("O-23")
def test_a_pattern_comes_before_the_path() -> None:
    patterns = ["/orders/{id}"]
    low, high = of_requests(increased=False, patterns=patterns), of_requests(increased=True, patterns=patterns)

    for labels in (low, high):
        assert label(labels, b"/orders/19") == "/orders/{id}"
        assert label(labels, b"/v1.0/invoke/x/method//orders/17") == "/v1.0/invoke/{app_id}/method/orders/{id}"
        assert label(labels, b"/orders/" + b"9" * 5000) == "/orders/{id}"
    assert (label(low, b"/nope/x"), label(high, b"/nope/x")) == ("", "/nope/x")


@pytest.mark.rule("O-23")
def test_the_method_of_a_call_is_matched_without_the_call() -> None:
    methods = PathLabels(increased=True, patterns=PathPatterns(["/orders/{id}"]), encoded=False)

    assert label(methods, b"orders/17") == "/orders/{id}"
    assert label(methods, b"/double") == "/double"
    assert label(methods, b"a%2Fb") == "/a%2Fb"


@given(st.lists(st.binary(max_size=30), max_size=30))
def test_what_is_remembered_is_what_was_found(paths: list[bytes]) -> None:
    labels = of_requests(increased=True, patterns=["/a/{x}"])

    first = [label(labels, path) for path in paths]

    assert [label(labels, path) for path in paths] == first


def test_the_memory_is_bounded() -> None:
    labels = of_requests(increased=True)

    for number in range(3 * MAX_KNOWN):
        assert label(labels, b"/%d" % number) == f"/{number}"
    label(labels, b"/" + b"%41" * MAX_PATH_BYTES)

    assert len(labels.known) <= MAX_KNOWN
    assert max(map(len, labels.known)) <= MAX_PATH_BYTES
    assert label(labels, b"/healthz") == "/healthz"
