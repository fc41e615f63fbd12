"""What a Dapr client and an app see over HTTP, as recorded from a running ``daprd``, case by case.

Where Tieline means to differ, the cases say so already. Each test names the rules that its cases hold.
"""

from __future__ import annotations

import pytest

from tests.contract.conftest import Meshes
from tests.contract.harness.cases import Case, load


def recorded(group: str) -> pytest.MarkDecorator:
    """Return the parameters of a test: the cases of a group under their names."""
    cases = [pytest.param(case, id=case.name, marks=pytest.mark.rule(*case.rules)) for case in load(group)]
    return pytest.mark.parametrize("case", cases)


@pytest.mark.rule(
    "A-2", "A-4", "A-5", "A-6", "A-7", "A-9", "A-10", "A-12", "A-13", "H-18", "H-19", "H-20", "H-21", "H-22",
    "H-23", "H-24", "H-25", "H-26", "H-28", "H-30", "H-36", "H-38", "H-48", "H-49", "H-85",
)  # fmt: skip
@recorded("address")
def test_the_right_app_is_called(case: Case, meshes: Meshes) -> None:
    """Which app is called: by path, by header, by credentials; and what is no address."""
    meshes.check(case)


@pytest.mark.rule("A-4", "H-30", "H-31", "H-32", "H-33", "H-34", "H-35", "H-38", "H-56", "H-64", "H-110", "H-152")
@recorded("path")
def test_the_method_reaches_the_app_as_it_was_meant(case: Case, meshes: Meshes) -> None:
    """The method on its way from the URL to the app: decoded once, cleaned, encoded again."""
    meshes.check(case)


@pytest.mark.rule("H-37")
@recorded("query")
def test_the_query_reaches_the_app_as_it_was_sent(case: Case, meshes: Meshes) -> None:
    """The query reaches the app as it was sent."""
    meshes.check(case)


@pytest.mark.rule("A-3", "H-39", "H-54", "H-57", "H-64", "H-69", "H-85")
@recorded("verb")
def test_the_verb_reaches_the_app(case: Case, meshes: Meshes) -> None:
    """Verbs, the unknown ones included."""
    meshes.check(case)


@pytest.mark.rule("A-5", "H-46", "H-47", "H-48", "H-49", "H-50", "H-51", "H-52", "H-54", "H-124", "H-152")
@recorded("reqhead")
def test_the_headers_of_the_request_reach_the_app(case: Case, meshes: Meshes) -> None:
    """Headers on their way to the app: what passes, what is taken away, what is added."""
    meshes.check(case)


@pytest.mark.rule("H-55", "H-56", "H-68", "H-160")
@recorded("trace")
def test_the_trace_goes_on_at_the_app(case: Case, meshes: Meshes) -> None:
    """Trace context and baggage, from the client to the app and back."""
    meshes.check(case)


@pytest.mark.rule("A-5", "H-4", "H-53", "H-54", "H-57", "H-58", "H-59", "H-69", "H-71", "H-95", "H-161")
@recorded("reqbody")
def test_the_body_of_the_request_reaches_the_app(case: Case, meshes: Meshes) -> None:
    """Bodies on their way to the app: whole, in chunks, slow, broken off."""
    meshes.check(case)


@pytest.mark.rule("A-8", "H-65", "H-72", "H-73")
@recorded("status")
def test_the_status_of_the_app_comes_back(case: Case, meshes: Meshes) -> None:
    """The status of the app is the status of the answer."""
    meshes.check(case)


@pytest.mark.rule("H-47", "H-52", "H-67", "H-72", "H-113", "H-125")
@recorded("resphead")
def test_the_headers_of_the_app_come_back(case: Case, meshes: Meshes) -> None:
    """Headers on their way back."""
    meshes.check(case)


@pytest.mark.rule("A-8", "H-54", "H-69", "H-70", "H-71", "H-73", "H-74")
@recorded("respbody")
def test_the_body_of_the_app_comes_back(case: Case, meshes: Meshes) -> None:
    """Bodies on their way back: with a length, in chunks, streamed, broken off, compressed."""
    meshes.check(case)


@pytest.mark.rule("A-8", "H-54", "H-69", "H-85", "H-90", "H-157")
@recorded("appbad")
def test_an_app_that_misbehaves_is_an_error(case: Case, meshes: Meshes) -> None:
    """Apps that close, stall, or answer with what is no HTTP."""
    meshes.check(case)


@pytest.mark.rule("H-75", "H-76", "H-77", "H-78", "H-85", "H-158")
@recorded("sse")
def test_events_come_back_as_they_happen(case: Case, meshes: Meshes) -> None:
    """Event streams."""
    meshes.check(case)


@pytest.mark.rule("A-2", "H-18", "H-20", "H-27", "H-30", "H-51", "H-52", "H-65", "H-85", "H-89", "H-96", "H-99")
@recorded("endpoint")
def test_an_endpoint_is_called_by_its_name(case: Case, meshes: Meshes) -> None:
    """Endpoints outside the mesh that have a name."""
    meshes.check(case)


@pytest.mark.rule("H-66", "H-159")
@recorded("redirect")
def test_redirects_are_followed_for_named_endpoints_only(case: Case, meshes: Meshes) -> None:
    """Redirects: of apps and of URLs for the caller, of endpoints for the sidecar."""
    meshes.check(case)


@pytest.mark.rule("H-18", "H-22", "H-27", "H-85", "H-99", "H-103", "H-104")
@recorded("url")
def test_a_url_is_called(case: Case, meshes: Meshes) -> None:
    """Targets that are URLs."""
    meshes.check(case)


@pytest.mark.rule("H-85", "H-86", "H-89", "H-104", "H-120", "H-133")
@recorded("error")
def test_a_call_that_reaches_no_app_says_why(case: Case, meshes: Meshes) -> None:
    """Calls that reach no app: unknown IDs, sidecars and apps that are down, apps that are not well."""
    meshes.check(case)


@pytest.mark.rule("H-3", "H-60", "H-63", "H-115", "H-137", "H-153", "H-154")
@recorded("limits")
def test_limits_hold_to_the_byte(case: Case, meshes: Meshes) -> None:
    """Long bodies and heads, and calls that wait for each other."""
    meshes.check(case)


@pytest.mark.rule("H-64", "H-155", "H-156")
@recorded("malformed")
def test_what_is_no_http_is_refused(case: Case, meshes: Meshes) -> None:
    """What is no HTTP, or no HTTP that one may let pass."""
    meshes.check(case)


@pytest.mark.rule("H-3", "H-22", "H-69", "H-131")
@recorded("conn")
def test_a_connection_lives_as_long_as_it_should(case: Case, meshes: Meshes) -> None:
    """Connections: kept, pipelined, closed, upgraded to HTTP/2."""
    meshes.check(case)


@pytest.mark.rule("H-21", "H-22", "H-24", "H-131", "H-133", "H-135", "H-136", "H-137", "H-138", "H-141")
@recorded("other")
def test_the_rest_of_the_api_answers(case: Case, meshes: Meshes) -> None:
    """The rest of the API: health, metadata, paths that are not there."""
    meshes.check(case)


@pytest.mark.rule("H-114", "H-122", "H-123", "H-124", "H-131")
@recorded("token")
def test_the_api_asks_for_its_token(case: Case, meshes: Meshes) -> None:
    """The API token: who must show it, and that it goes no further."""
    meshes.check(case)


@pytest.mark.rule("H-40", "H-125", "H-126", "H-127")
@recorded("cors")
def test_web_pages_are_told_what_they_may_do(case: Case, meshes: Meshes) -> None:
    """CORS: preflights, and what is added to other answers."""
    meshes.check(case)


@pytest.mark.rule("H-128", "H-129", "H-130")
@recorded("api-list")
def test_lists_open_and_close_apis(case: Case, meshes: Meshes) -> None:
    """API allow and deny lists."""
    meshes.check(case)


@pytest.mark.rule("H-116", "H-121", "H-133", "H-134")
@recorded("start")
def test_the_api_answers_while_the_app_is_awaited(case: Case, meshes: Meshes) -> None:
    """What can be asked while the app is still awaited."""
    meshes.check(case)


@pytest.mark.rule("H-138", "H-144", "H-148")
@recorded("shutdown")
def test_the_shutdown_api_ends_the_sidecar(case: Case, meshes: Meshes) -> None:
    """The shutdown API."""
    meshes.check(case)


def test_the_rules_named_above_are_those_of_the_cases() -> None:
    for name, test in list(globals().items()):
        if not name.startswith("test_") or "case" not in test.__annotations__:
            continue
        marks = {mark.name: mark for mark in test.pytestmark}
        cases: list[Case] = [parameter.values[0] for parameter in marks["parametrize"].args[1]]

        assert set(marks["rule"].args) == {rule for case in cases for rule in case.rules}, name
