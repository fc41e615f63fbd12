"""Which path counts under which pattern, and which patterns are no patterns."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tieline.errors import ConfigError
from tieline.telemetry.path_patterns import (
    MAX_PATTERNS,
    VARIANT,
    BadPattern,
    PathPatterns,
    Segments,
    Wild,
    covers,
    in_conflict,
    overlap,
    parse,
)


@pytest.mark.rule("O-23")
@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/orders/{id}", ["/orders/17", "/orders/a b"], ["/orders", "/orders/", "/orders/1/2", "/Orders/1"]),
        ("/orders/{id}/items", ["/orders/1/items"], ["/orders/1/items/", "/orders/items"]),
        ("/nope/", ["/nope/", "/nope/x", "/nope/x/y"], ["/nope", "/nop/x"]),
        ("/files/{path...}", ["/files/", "/files/a", "/files/a/b"], ["/files"]),
        ("/a/{$}", ["/a/"], ["/a", "/a/b"]),
        ("/", ["/", "/a", "/a/b/c/"], []),
        ("/{x}", ["/a"], ["/", "/a/", "/a/b"]),
        ("/a%20b/{x}", ["/a b/c"], ["/a%20b/c"]),
        ("/exact", ["/exact"], ["/exact/", "/exac", "/exactly"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    patterns = PathPatterns([pattern])

    assert {path: patterns.match(path) for path in matching} == dict.fromkeys(matching, pattern)
    assert {path: patterns.match(path) for path in others} == dict.fromkeys(others)


@pytest.mark.rule("O-23")
def test_a_pattern_also_stands_for_calls_of_that_method() -> None:
    """Unless it names calls itself."""
    patterns = PathPatterns(["orders/{id}", "/v1.0/invoke/callee/method/status/{code}", ""])

    assert patterns.match("/orders/1") == "/orders/{id}"
    assert patterns.match("/v1.0/invoke/shop/method/orders/1") == "/v1.0/invoke/{app_id}/method/orders/{id}"
    assert patterns.match("/v1.0/invoke/callee/method/status/404") == "/v1.0/invoke/callee/method/status/{code}"
    assert patterns.match("/v1.0/invoke/other/method/status/404") == "/v1.0/invoke/{app_id}/method/"
    assert patterns.match("/v1.0/metadata") == "/"


@pytest.mark.rule("O-23")
def test_the_most_specific_pattern_wins_wherever_it_stands() -> None:
    texts = ["/", "/a/{x}", "/a/b", "/a/{x}/c", "/a/b/", "/a/{rest...}", "/a/b/{$}"]
    expected = {
        "/a/b": "/a/b",
        "/a/z": "/a/{x}",
        "/a/z/c": "/a/{x}/c",
        "/a/z/d": "/a/{rest...}",
        "/a/b/d": "/a/b/",
        "/a/b/": "/a/b/{$}",
        "/z": "/",
    }

    with pytest.raises(BadPattern, match=r"'/a/\{x\}/c' and '/a/b/'"):
        PathPatterns(texts)
    texts.remove("/a/{x}/c")
    del expected["/a/z/c"]
    for order in (texts, texts[::-1]):
        patterns = PathPatterns(order)
        assert {path: patterns.match(path) for path in expected} == expected


@pytest.mark.rule("C-10")
@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["/a/{"], "'/a/{': '{' must be a whole segment in braces"),
        (["/a/x{id}"], "must be a whole segment in braces"),
        (["/a/{id}x"], "must be a whole segment in braces"),
        (["/a/{}"], "needs a name"),
        (["/a/{...}"], "needs a name"),
        (["/a/{1d}"], "needs a name"),
        (["/a/{b-c}"], "needs a name"),
        (["/{$}/a"], "may only stand at the end"),
        (["/{x...}/a"], "may only stand at the end"),
        (["/{x}/{x}"], "the name 'x' is there twice"),
        (["/{app_id}/x"], "names the app in the pattern's variant"),
        (["GET /a"], "has a blank"),
        (["/a/{x}/b", "/a/c/{y}"], "match the same path, and neither is the more specific one"),
        (["/a/{x}", "/a/{y}"], "match the same path"),
        (["/a/", "/a/{x...}"], "match the same path"),
        (["/orders/{id}", "/v1.0/invoke/{app}/method/orders/{id}"], "match the same path"),
        (["/{x}/{y}/a/"], "'/v1.0/invoke/{app_id}/method/{x}/{y}/a/' match the same path"),
        ([f"/{number}" for number in range(MAX_PATTERNS + 1)], f"more than {MAX_PATTERNS}"),
    ],
)
def test_what_has_no_meaning_is_refused(patterns: list[str], said: str) -> None:
    """Dapr falls over such a Configuration; here the error tells which pattern it is."""
    with pytest.raises(BadPattern) as error:
        PathPatterns(patterns)

    assert said in str(error.value)
    assert isinstance(error.value, ConfigError)
    assert "\n" not in str(error.value)


@pytest.mark.rule("C-10")
def test_the_same_pattern_twice_is_fine() -> None:
    assert PathPatterns(["/a/{x}", "a/{x}", "/a/{x}"]).match("/a/1") == "/a/{x}"


def test_many_patterns_are_compared_in_a_bearable_time() -> None:
    patterns = PathPatterns([f"/api/v{number}/things/{{id}}" for number in range(MAX_PATTERNS)])

    assert patterns.match(f"{VARIANT}/api/v7/things/x") == VARIANT + "/api/v7/things/{id}"


# ── against a plain reading of the definition ──────────────────────────────────────────────────────
PARTS = st.sampled_from(["a", "b", "{x}", "{y}"])
PATTERNS = st.builds(
    lambda parts, tail: "/" + "/".join([*dict.fromkeys(parts), *tail]),
    st.lists(PARTS, max_size=3),
    st.sampled_from([[], [""], ["{$}"], ["{z...}"], ["a"]]),
)
PATHS = st.builds(lambda parts: "/" + "/".join(parts), st.lists(st.sampled_from(["a", "b", "c"]), max_size=4)).flatmap(
    lambda path: st.sampled_from([path, path.rstrip("/") + "/"])
)


def plainly_matches(segments: Segments, path: str) -> bool:
    parts = path.split("/")[1:]
    for number, segment in enumerate(segments):
        if segment is Wild.REST:
            return len(parts) > number
        if number >= len(parts):
            return False
        if segment is Wild.END:
            return parts[number:] == [""]
        if segment is not Wild.ONE and segment != parts[number]:
            return False
        if segment is Wild.ONE and not parts[number]:
            return False
    return len(parts) == len(segments)


@given(PATTERNS, PATHS)
def test_one_pattern_matches_by_the_definition(pattern: str, path: str) -> None:
    try:
        found = PathPatterns([pattern]).match(path)
    except BadPattern:  # it is in conflict with its own variant for calls
        assume(False)
        raise

    assert (found == pattern) == plainly_matches(parse(pattern), path)


@given(PATTERNS, PATTERNS, st.lists(PATHS, min_size=20, max_size=60))
def test_comparing_agrees_with_the_paths(one: str, other: str, paths: list[str]) -> None:
    left, right = parse(one), parse(other)
    both = [path for path in paths if plainly_matches(left, path) and plainly_matches(right, path)]
    only_right = [path for path in paths if plainly_matches(right, path) and not plainly_matches(left, path)]

    assert overlap(left, right) or not both
    assert not covers(left, right) or not only_right
    assert overlap(left, right) == overlap(right, left)
    assert in_conflict(left, right) == in_conflict(right, left)
    assert overlap(left, right) or not covers(left, right)


@given(st.lists(PATTERNS, min_size=1, max_size=5), PATHS)
def test_the_pattern_that_counts_is_within_all_others_that_match(texts: list[str], path: str) -> None:
    try:
        patterns = PathPatterns(texts)
    except BadPattern:
        assume(False)
        raise
    found = patterns.match(path)

    matching = [text for text in texts if plainly_matches(parse(text), path)]
    assert (found is None) == (not matching)
    assert found is None or (found in matching and all(covers(parse(text), parse(found)) for text in matching))


@given(st.lists(st.text(max_size=12), max_size=5), st.text(max_size=20))
def test_whatever_is_written_is_a_pattern_or_refused(texts: list[str], path: str) -> None:
    try:
        patterns = PathPatterns(texts)
    except BadPattern:
        return
    patterns.match("/" + path)
