"""Resource files of any content: they never break a start, and what the checks pass is loaded without a word."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tieline.config.checks.files import Checker
from tieline.config.fatal import FatalOption
from tieline.config.resources import load_resources

KEYS = (
    "apiVersion", "kind", "metadata", "name", "namespace", "spec", "baseUrl", "baseURL", "headers", "value", "envRef",
    "secretKeyRef", "key", "clientTLS", "rootCA", "certificate", "privateKey", "renegotiation", "auth", "secretStore",
    "scopes", "type", "version", "metadata", "ignoreErrors", "policies", "targets", "retries", "features", "tracing",
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.sampled_from(["a", "http://x", "-----BEGIN ", "Never", "env", "state.redis", "secretstores.local.env", "X"]),
)  # fmt: skip
KINDS = st.sampled_from(["HTTPEndpoint", "Component", "Resiliency", "Configuration", "Subscription", "httpendpoint"])
TREES = st.recursive(
    SCALARS,
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), below, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(["a", "b", "a/b", "", "..", "n"])
DOCUMENTS = st.fixed_dictionaries(
    {
        "apiVersion": st.just("dapr.io/v1alpha1"),
        "kind": KINDS,
        "metadata": st.fixed_dictionaries({"name": NAMES}) | TREES,
    },
    optional={"spec": TREES, "auth": TREES, "scopes": TREES},
)
HEADERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.text(max_size=4)}, optional={"value": SCALARS, "envRef": st.sampled_from(["X", "DAPR_X", "NONE"])}
    ),
    max_size=3,
)
ENDPOINTS = st.fixed_dictionaries(
    {
        "apiVersion": st.just("dapr.io/v1alpha1"),
        "kind": st.just("HTTPEndpoint"),
        "metadata": st.fixed_dictionaries({"name": NAMES}),
        "spec": st.fixed_dictionaries(
            {"baseUrl": st.sampled_from(["http://x", "https://x:1/y", "x", ""])},
            optional={"headers": HEADERS, "clientTLS": TREES, "other": SCALARS},
        ),
    }
)
ENVIRON = {"X": "x"}
FIXTURE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def in_folder(folder: Path, data: bytes) -> str:
    (folder / "a.yaml").write_bytes(data)
    return str(folder)


def as_text(documents: list[Any]) -> bytes:
    return "\n---\n".join(map(json.dumps, documents)).encode()


@FIXTURE
@given(st.lists(DOCUMENTS, max_size=4).map(as_text) | st.binary(max_size=200))
def test_any_file_is_read_and_checked_without_a_crash(tmp_path: Path, data: bytes) -> None:
    folder = in_folder(tmp_path, data)
    checker = Checker(ENVIRON)
    checker.check(data, "a", alone=True)
    assert all("\n" not in one.message for one in checker.findings())
    with contextlib.suppress(FatalOption):
        resources = load_resources([folder], app_id="a", environ=ENVIRON)
        again = load_resources([folder], app_id="a", environ=ENVIRON, previous=resources)
        assert (again.http_endpoints, again.components) == (resources.http_endpoints, resources.components)


@FIXTURE
@given(st.lists(ENDPOINTS, max_size=3).map(as_text))
def test_what_the_checks_pass_is_loaded_without_a_word(tmp_path: Path, data: bytes) -> None:
    checker = Checker(ENVIRON)
    checker.check(data, "a", alone=False)

    resources = load_resources([in_folder(tmp_path, data)], app_id="a", environ=ENVIRON)

    if not checker.findings():
        assert [notice for notice in resources.notices if "is not set" not in notice.text] == []
        assert all(not endpoint.problem for endpoint in resources.http_endpoints.values())
