# ruff: noqa: E501 - a table of cases, one a line
"""Checks of files without a start: each mistake with its line, and what would do nothing without a word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tieline.config.checks.files import Checker
from tieline.config.checks.findings import Finding, Severity

HEAD = "apiVersion: dapr.io/v1alpha1\nkind: {}\nmetadata: {{name: a}}\n"
RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "resource_cases.json").read_text("utf-8"))


def check(
    *texts: str | bytes, environ: Mapping[str, str] | None = None, alone: bool = True, notes: bool = False
) -> list[Finding]:
    """Return what is found in files ``0``, ``1`` and so on."""
    checker = Checker(environ or {})
    for number, text in enumerate(texts):
        checker.check(text.encode() if isinstance(text, str) else text, str(number), alone=alone)
    return [one for one in checker.findings() if notes or one.severity is not Severity.NOTE]


def endpoint(spec: str = "{baseUrl: 'http://x'}", more: str = "") -> str:
    return f"{HEAD.format('HTTPEndpoint')}spec: {spec}\n{more}"


def component(spec: str, more: str = "") -> str:
    return f"{HEAD.format('Component')}spec: {spec}\n{more}"


def configuration(spec: str) -> str:
    return f"{HEAD.format('Configuration')}spec: {spec}\n"


def resiliency(spec: str) -> str:
    return f"{HEAD.format('Resiliency')}spec: {spec}\n"


GOOD = [
    endpoint("{baseURL: 'https://u:p@x:1/base', Headers: [{name: A, value: 1}, {name: b, secretKeyRef: {name: s}}],\n"
    "  clientTLS: {rootCA: {value: '-----BEGIN CERTIFICATE-----'}, renegotiation: Never}}", "auth: {secretStore: a}\n"),
    component("{type: secretstores.local.env, version: v1, metadata: []}"),
    component("{type: state.redis, version: v1, ignoreErrors: true, initTimeout: 5s, metadata: [{name: x, value: [1]}]}"),
    configuration("{features: [{name: HotReload, enabled: no}], tracing: {samplingRate: 0.5}}"),
    resiliency("{policies: {timeouts: {t: 5s, m: 500}, retries: {r: {policy: Exponential, maxInterval: 1m30s,\n"
    "  matching: {httpStatusCodes: '500,502-504', gRPCStatusCodes: 14}}}, circuitBreakers: {c: {trip: 'x > 1'}}},\n"
    "  targets: {apps: {x: {timeout: t, retry: r, circuitBreaker: c}}, components: {s: {outbound: {retry: r}}}}}"),
]  # fmt: skip


def test_good_files_have_no_findings() -> None:
    assert check(GOOD[0], GOOD[1]) == []
    assert [check(text) for text in GOOD[2:]] == [[], [], []]


@pytest.mark.parametrize(
    ("text", "line", "severity", "words", "hint"),
    [
        # documents
        ("a: [", 1, "error", "did not find expected node content", ""),
        (endpoint() + "---\n- x\n", 6, "error", "the document must be a mapping, not a list", ""),
        (endpoint().replace("HTTPE", "HttpE"), 1, "error", "no kind 'HttpEndpoint'", 'did you mean "HTTPEndpoint"?'),
        (endpoint().replace("Endpoint", "Endpoints"), 1, "error", "there is no kind", 'did you mean "HTTPEndpoint"?'),
        (endpoint().replace("v1alpha1", "v1"), 1, "error", "apiVersion must be dapr.io/v1alpha1, not 'dapr.io/v1'", ""),
        (endpoint().replace("name: a", "name: a/b"), 1, "error", "metadata.name 'a/b' may not contain '/'", ""),
        (endpoint().replace("name: a", ""), 1, "error", "metadata.name is missing", ""),
        (endpoint(more="kind: HTTPEndpoint\n"), 5, "warning", "the key kind already stands at line 2", ""),
        (endpoint(more="scope: [x]\n"), 5, "error", "scope is not a known key", 'did you mean "scopes"?'),
        (endpoint(more="other: [x]\n"), 5, "warning", "other is not a known key: it is passed over", ""),
        (endpoint(more="scopes: x\n"), 5, "error", "scopes must be a list, not the value 'x'", ""),
        # endpoints
        (endpoint("{}"), 4, "error", "spec.baseUrl is missing", "give http://… or https://…"),
        (endpoint("{baseUrl: 'x:80'}"), 4, "error", "must begin with http:// or", 'did you mean "http://x:80"?'),
        (endpoint("{baseUrl: 'ftp://x'}"), 4, "error", "must begin with http:// or https://, not ftp://", ""),
        (endpoint("{baseUrl: 'http:///x'}"), 4, "error", "spec.baseUrl names no host", ""),
        (endpoint("{baseUrl: 'http://x/?a=b'}"), 4, "error", "has a query or a fragment", ""),
        (endpoint("{baseUrl: 'http://x y'}"), 4, "error", "has a blank or a control character", ""),
        (endpoint("{baseUrl: 'http://x/y/'}"), 4, "warning", "method x is called at /y//x", "leave out the last slash"),
        (endpoint("\n  baseUrl: http://x\n  headers: [{name: 'a b', value: x}]"), 6, "error", "'a b' cannot be", ""),
        (endpoint("\n  baseUrl: http://x\n  headers:\n  - {value: x}"), 7, "error", "spec.headers[0] has no name", ""),
        (endpoint("{baseUrl: 'http://x', headers: [{name: a, value: x}, {name: A, value: y}]}"), 4, "warning", "last", ""),
        (endpoint("{baseUrl: 'http://x', headers: [{name: a}]}"), 4, "warning", "has no value", "give value, secretKe"),
        (endpoint("{baseUrl: 'http://x', headers: [{name: a, envRef: DAPR_X}]}"), 4, "error", "may not be read", ""),
        (endpoint("{baseUrl: 'http://x', headers: [{name: a, envRef: NOT_SET}]}"), 4, "warning", "NOT_SET is not set here", "set it"),
        (endpoint("{baseUrl: 'http://x', headers: [{name: a, value: x, envRef: X}]}"), 4, "warning", "not the variab", ""),
        (endpoint("{baseUrl: 'http://x', headers: [{name: a, secretKeyRef: {name: s}}]}"), 4, "error", "auth.secret", ""),
        (endpoint(more="auth: {store: x}\n"), 5, "warning", "auth.store is not a known key", ""),
        (endpoint("{baseUrl: 'https://x', clientTLS: {rootCA: {value: x}}}"), 4, "error", "rootCA is no PEM text", ""),
        (endpoint("{baseUrl: 'https://x', clientTLS: {rootCA: x}}"), 4, "error", "rootCA must be a mapping", ""),
        (endpoint("{baseUrl: 'https://x', clientTLS: {renegotiation: never}}"), 4, "error", "must be one of", "did you"),
        (
            endpoint("{baseUrl: 'https://x', clientTLS: {privateKey: {value: '-----BEGIN '}}}"),
            4, "warning", "spec.clientTLS.privateKey has no effect without spec.clientTLS.certificate", "",
        ),
        (
            endpoint("{baseUrl: 'http://x', clientTLS: {rootCA: {value: '-----BEGIN '}}}"),
            4, "warning", "spec.clientTLS has no effect, since spec.baseUrl begins with http://", "",
        ),
        # components
        (component("{version: v1}"), 4, "error", "spec.type is missing", ""),
        (component("{type: stat.redis}"), 4, "error", "stat.redis is of no known family", 'did you mean "state.redis"?'),
        (component("{type: redis}"), 4, "error", "redis is of no known family", "it has the form family.name"),
        (component("{type: middleware.http.raetlimit}"), 4, "error", "no middleware", 'did you mean "middleware.http.rat'),
        (component("{type: middleware.http.bearer, metadata: [{name: issuerURL, value: x}]}"), 1, "error", "audience", ""),
        (component("{type: state.redis, metadata: {a: b}}"), 4, "error", "spec.metadata must be a list", ""),
        (component("{type: state.redis, metadata: [{value: x}]}"), 4, "error", "spec.metadata[0] has no name", ""),
        (component("{type: secretstores.local.fil}"), 4, "error", "no secretstores.local.fil", 'did you mean "secrets'),
        (component("{type: secretstores.hashicorp.vault}"), 4, "warning", "will be missing", "there are secretstores."),
        (component("{type: secretstores.local.file, metadata: [{name: secretsFile, value: /no/such}]}"), 4, "warning", "secretsFile /no/such: no such file", "a relative path"),
        (component("{type: state.redis, initTimeout: soon}"), 4, "error", "must be a duration such as 5s", ""),
        # configurations
        (configuration("{Features: []}"), 4, "error", "spec.Features is not a known key", 'did you mean "features"?'),
        (configuration("{features: {}}"), 4, "error", "spec.features must be a list, not a mapping", ""),
        (configuration("{metric: {enabled: 'true'}}"), 4, "error", "spec.metric.enabled must be true or false", ""),
        (configuration("{features: [{name: hotreload, enabled: on}]}"), 4, "warning", "no feature hotreload", "did you"),
        (configuration("{features: [{name: HotReload}]}"), 4, "warning", "a feature needs name and enabled", ""),
        (configuration("{tracing: {samplingRate: lots}}"), 4, "warning", "samplingRate lots is no number", ""),
        (configuration("{tracing: {samplingRate: 50}}"), 4, "warning", "samplingRate 50 is not from 0 to 1", ""),
        (configuration("{api: {denied: [{name: invoke, version: v1}]}}"), 4, "error", "protocol is '' matches nothing", ""),
        (configuration("{api: {denied: [{name: invoke, protocol: http}]}}"), 4, "error", "without version matches", ""),
        (configuration("{api: {allowed: [{name: x, version: v1, protocol: http}]}}"), 4, "warning", "no API 'x'", ""),
        (configuration("{secrets: {scopes: [{storeName: a}, {storeName: a}]}}"), 4, "error", "a storeName is repeated", ""),
        (configuration("{tracing: {zipkin: {endpointAddress: x}}}"), 4, "error", 'invalid collector URL "x"', ""),
        (configuration("{httpPipeline: {handlers: [{name: x}]}}"), 4, "error", "a handler needs name and type", ""),
        (configuration("{httpPipeline: {handlers: [{name: x, type: middleware.http.x}]}}"), 4, "error", "no middlew", ""),
        (configuration("{features: [{name: $NAME, enabled: on}]}"), 4, "warning", "$NAME is replaced by nothing", "each $"),
        ("---\n---\n" + configuration("{}"), 3, "error", "which is empty: this Configuration is not read", "put it first"),
        (endpoint() + "---\n" + configuration("{}"), 6, "error", "which is another: this Configuration", "put it first"),
        ("spec: {Tracing: {}}\n", 1, "error", "spec.Tracing is not a known key", 'did you mean "tracing"?'),
        ("spec: {}\n", 1, "warning", "kind is missing: taken for a Configuration", "kind: Configuration"),
        # policies
        (resiliency("{policies: {timeouts: {t: soon}}}"), 4, "error", "timeout t: 'soon' is no duration", "such as 5s"),
        (resiliency("{policies: {timeouts: {t: }}}"), 4, "error", "timeout t: '' is no duration", "such as 5s"),
        (resiliency("{policies: {retries: {r: {policy: linear}}}}"), 4, "error", "must be constant or exponential", ""),
        (resiliency("{policies: {retries: {r: {maxRetries: '3'}}}}"), 4, "error", "must be a whole number", ""),
        (resiliency("{policies: {retries: {r: {maxInterval: 5s}}}}"), 4, "warning", "for exponential pauses", "give d"),
        (resiliency("{policies: {retries: {r: {matching: {httpStatusCodes: '5xx'}}}}}"), 4, "error", "is no code", ""),
        (resiliency("{policies: {retries: {r: {matching: {gRPCStatusCodes: '17'}}}}}"), 4, "error", "is no code", ""),
        (resiliency("{policies: {circuitBreakers: {c: {timeout: 5d}}}}"), 4, "error", "'5d' is no duration", ""),
        (resiliency("{targets: {apps: {x: {retry: r}}}}"), 4, "warning", "no retry policy 'r' here", ""),
        (resiliency("{scopes: [x]}"), 4, "error", "scopes within spec is passed over", "put scopes beside spec"),
        (endpoint() + "---\n" + resiliency("{}"), 6, "warning", "only if it is the first document of its file", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_found_with_its_line(text: str, line: int, severity: str, words: str, hint: str) -> None:
    found = check(text)

    matching = [one for one in found if words in one.message]
    assert matching, found
    assert (matching[0].line, matching[0].severity) == (line, severity)
    assert matching[0].hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            endpoint("{baseUrl: 'ftp://x'}", "scopes: foo\n"),
            [
                "spec.baseUrl must begin with http:// or https://, not ftp://",
                "scopes must be a list, not the value 'foo'",
            ],
        ),
        (
            endpoint("{baseUrl: 'ftp://x', headers: {a: b}}"),
            [
                "spec.headers must be a list, not a mapping",
                "spec.baseUrl must begin with http:// or https://, not ftp://",
            ],
        ),
        (
            configuration("{features: {}, tracing: {samplingRate: lots}}"),
            ["spec.features must be a list, not a mapping", "samplingRate lots is no number: 0.0001 is taken"],
        ),
    ],
)
def test_a_value_of_a_wrong_type_hides_no_other_mistake_of_its_document(text: str, messages: list[str]) -> None:
    assert [one.message for one in check(text)] == messages


def test_policies_that_let_in_more_than_they_seem_to_are_told() -> None:
    text = configuration(
        "\n  accessControl:\n    policies:\n    - appId: x\n      trustDomain: public\n      namespace: default\n"
        "      operations:\n      - {name: /a/*/c, httpVerb: [get], action: alow}\n      - {name: /b, action: allow}"
    )

    found = {one.line: one.message for one in check(text) if one.line != 6 or "no defaultAction" in one.message}

    assert found[6] == "accessControl has policies but no defaultAction: all other apps may call"
    messages = [one.message for one in check(text) if one.line == 11]
    assert any("alow counts as deny" in message for message in messages)
    assert any("the * between slashes stands for itself only" in message for message in messages)
    assert any("the verb get matches no request" in message for message in messages)
    assert "has no httpVerb" in found[12]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((endpoint(), endpoint()), "there are two HTTPEndpoints named a: the other is in 0 line 1"),
        ((endpoint(more="scopes: [x]\n"), endpoint(more="scopes: [y]\n")), ""),
        ((endpoint(more="scopes: [x]\n"), endpoint()), "there are two"),
        ((endpoint(), component("{type: state.redis}")), ""),
        ((resiliency("{}"), resiliency("{}")), ""),
        ((component("{type: state.redis}"), component("{ignoreErrors: 1}")), "there are two Components named a"),
    ],
)
def test_doubles_are_found_between_files(texts: tuple[str, str], words: str) -> None:
    found = [one for one in check(*texts) if one.file == "1" and "two" in one.message]

    assert len(found) == bool(words)
    assert not found or found[0].message.startswith(words)


def test_handlers_and_secret_stores_are_looked_for_between_files() -> None:
    pipeline = configuration("{httpPipeline: {handlers: [{name: up, type: middleware.http.uppercase}]}}")
    wanting = endpoint(
        "{baseUrl: 'http://x', headers: [{name: h, secretKeyRef: {name: s}}]}", "auth: {secretStore: b}\n"
    )

    alone = [one.message for one in check(pipeline)]
    with_components = check(pipeline, component("{type: secretstores.local.env}"), wanting)

    assert alone == []
    assert [(one.file, one.message) for one in with_components] == [
        ("0", "no component up (middleware.http.uppercase/v1) is among these files: the step is left out"),
        ("2", "spec.headers[0]: no secret store 'b' is among these files"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "services: {web: {image: x}}\n",
        "apiVersion: v1\nkind: ConfigMap\n",
        "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\n",
        "apiVersion: other/v1\nkind: Configuration\n".replace("Configuration", "Component"),
    ],
)
def test_what_is_none_of_our_business_is_only_noted(text: str) -> None:
    assert check(text, alone=False) == []
    assert [one.severity for one in check(text, alone=False, notes=True)] == [Severity.NOTE]


def test_a_configuration_is_checked_as_it_is_once_the_environment_is_put_in() -> None:
    text = configuration("{$KEY: [], tracing: {samplingRate: $RATE}}")

    assert check(text, environ={"KEY": "features", "RATE": "1"}) == []
    assert "samplingRate 9" in check(text, environ={"KEY": "features", "RATE": "9"})[0].message


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in RECORDED])
def test_every_recorded_folder_can_be_checked_and_what_ends_daprd_is_an_error(case: dict[str, Any]) -> None:
    texts = [text for folder in case["folders"] for name, text in folder.items() if name.lower().endswith(("ml",))]

    found = check(*texts, environ=case.get("environment"), alone=False, notes=True)

    if "fatal" in case and "NAMESPACE" not in case["name"] and "scope" not in case["name"]:
        assert any(one.severity is Severity.ERROR for one in found)
