"""Variables read, variables set, and references to them in files."""

from __future__ import annotations

import pytest

from tieline.config.environment import Ports, expand_environment, own_environment, read_environment
from tieline.config.options import Options, check, parse_arguments
from tieline.config.settings import Settings

ENVIRON = {"FOO": "foo", "N_1": "one", "BLOCK": "a\n  b"}


def settings_of(*arguments: str) -> Settings:
    options = parse_arguments(["--app-id", "mine", *arguments])
    assert isinstance(options, Options)
    return check(options, {})


@pytest.mark.rule("H-16")
@pytest.mark.parametrize(
    ("environ", "namespace"), [({}, "default"), ({"NAMESPACE": ""}, ""), ({"NAMESPACE": "prod"}, "prod")]
)
def test_an_empty_namespace_is_not_the_default_one(environ: dict[str, str], namespace: str) -> None:
    assert read_environment(environ).namespace == namespace


@pytest.mark.rule("H-3")
@pytest.mark.parametrize(("word", "off"), [("y", True), ("ON", True), ("True", True), ("0", False), ("", False)])
def test_a_truth_word_turns_cleartext_http2_off(word: str, off: bool) -> None:
    assert read_environment({"DAPR_HTTP_DISABLE_H2C": word}).http_disable_h2c is off


def test_empty_tokens_and_addresses_count_as_absent() -> None:
    environment = read_environment({"DAPR_API_TOKEN": "", "APP_API_TOKEN": "", "DAPR_HOST_IP": ""})

    assert (environment.api_token, environment.app_api_token, environment.host_ip) == (None, None, None)


@pytest.mark.rule("H-17")
def test_a_sidecar_sets_eight_variables_of_its_own() -> None:
    settings = settings_of("--app-port", "8080", "--metrics-port", "9091", "--profile-port", "7778")

    assert own_environment(settings, "192.0.2.9", Ports(http=3501, grpc=50002, internal=47301, metrics=9091)) == {
        "APP_ID": "mine",
        "APP_PORT": "8080",
        "HOST_ADDRESS": "192.0.2.9",
        "DAPR_PORT": "47301",
        "DAPR_GRPC_PORT": "50002",
        "DAPR_HTTP_PORT": "3501",
        "DAPR_METRICS_PORT": "9091",
        "DAPR_PROFILE_PORT": "7778",
    }


def test_a_sidecar_without_an_app_says_app_port_zero() -> None:
    assert own_environment(settings_of(), "127.0.0.1", Ports(1, 2, 3, 4))["APP_PORT"] == "0"


@pytest.mark.rule("C-3")
@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("a-$FOO-b", "a-foo-b"),
        ("c-${FOO}-d", "c-foo-d"),
        ("$FOO$FOO", "foofoo"),
        ("$N_1x $N_1", " one"),
        ("e-$NOT_SET-f", "e--f"),
        ("g-$$-h", "g--h"),
        ("i-${NOT_SET:-dflt}-j", "i--j"),
        ("k-\\$FOO-l", "k-\\foo-l"),
        ("m-$-n", "m-n"),
        ("o-$1-p $12", "o--p 2"),
        ("q-${FOO-r", "q-FOO-r"),
        ("${} ${ $FOO", "  foo"),
        ("${FOO} ${FOO", "foo FOO"),
        ("${FOO\n} x", " x"),
        ("$ $. $", "$ $. $"),
        ("$BLOCK", "a\n  b"),
        ("\ufeff$FOO", "\ufefffoo"),
        ("$éFOO", "$éFOO"),
    ],
)
def test_references_are_replaced_as_daprd_does(text: str, expanded: str) -> None:
    assert expand_environment(text, ENVIRON) == expanded


@pytest.mark.timeout(5)
def test_many_unclosed_braces_take_no_quadratic_time() -> None:
    assert expand_environment("${" * 500_000, {}) == ""
