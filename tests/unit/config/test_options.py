"""The command line: what daprd was recorded to do with it, and what follows from the options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tieline.config.built import Feature
from tieline.config.configuration import load_configuration
from tieline.config.fatal import FLAGS, RUNTIME, FatalOption, ProtectionNotBuilt, UsageError
from tieline.config.flags import Flag
from tieline.config.options import OPTIONS, Ask, Options, check, ineffective, parse_arguments, usage
from tieline.config.settings import LOOPBACK, Settings

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "options_cases.json").read_text(encoding="utf-8"))
FILES = {"bad.yaml": "spec: [1, 2", "empty.yaml": ""}


def expanded(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return the arguments of a recording: its ports, its folder and its long name put in."""
    words: list[str] = []
    for word in arguments:
        words += RECORDED["base"] if word == "{base}" else [word.replace("{dir}", str(folder))]
    return ["a" * 200 if word == "{long}" else word for word in words]


def options_of(*arguments: str) -> Options:
    options = parse_arguments(arguments)
    assert isinstance(options, Options)
    return options


def settings_of(*arguments: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of a sidecar `a` with these options."""
    return check(options_of("--app-id", "a", *arguments), environ or {})


def refusal(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(FatalOption) as caught:
        settings_of(*arguments, environ=environ)
    return str(caught.value)


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_arguments(arguments)
    return str(caught.value)


def start(case: Mapping[str, Any], folder: Path) -> tuple[Options | Ask, Settings | None]:
    """Do what a start does with a command line, up to its first listener."""
    environ = case.get("environment", {})
    options = parse_arguments(expanded(case["arguments"], folder))
    if isinstance(options, Ask):
        return options, None
    settings = check(options, environ)
    load_configuration(settings.config_files, environ)
    return options, settings


def cases_with(exit_code: int | None) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in RECORDED["cases"] if outcome(case) == exit_code]


def outcome(case: Mapping[str, Any]) -> int | None:
    """Return the exit code to expect, ``None`` for a sidecar that runs: as recorded, unless marked otherwise."""
    if "tieline_fatal" in case:
        return 1
    return None if "tieline_serves" in case or "later" in case else case["exit_code"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.rule("H-9", "H-10", "H-11", "H-12")
@pytest.mark.parametrize("case", cases_with(None))
def test_a_command_line_that_daprd_runs_with_gives_settings(case: dict[str, Any], folder: Path) -> None:
    options, settings = start(case, folder)

    assert isinstance(options, Options)
    assert settings is not None
    if "stderr" in case:
        assert options.notices[-1] == case["stderr"]
    if "metadata" in case:
        assert settings.app_id == case["metadata"]["id"]
        assert settings.app_protocol == case["metadata"]["appConnectionProperties"]["protocol"]
        assert settings.app_channel_address == case["metadata"]["appConnectionProperties"]["channelAddress"]
        assert settings.app_port is None


@pytest.mark.rule("H-9")
@pytest.mark.parametrize("case", cases_with(0))
def test_a_question_is_answered_in_place_of_a_start(case: dict[str, Any], folder: Path) -> None:
    asked, _ = start(case, folder)

    assert isinstance(asked, Ask)
    assert asked.value in case["name"]


@pytest.mark.rule("H-9", "H-151")
@pytest.mark.parametrize("case", cases_with(2))
def test_a_command_line_that_does_not_parse_ends_with_daprds_line(case: dict[str, Any], folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        start(case, folder)

    assert str(caught.value) == case["stderr"]
    assert caught.value.exit_code == 2


@pytest.mark.rule("C-66", "C-91", "H-10", "H-11", "H-12", "H-14", "H-151")
@pytest.mark.parametrize("case", cases_with(1))
def test_a_value_that_cannot_be_used_is_refused_in_daprds_first_words(case: dict[str, Any], folder: Path) -> None:
    with pytest.raises(FatalOption) as caught:
        start(case, folder)

    assert str(caught.value).startswith(case.get("tieline_fatal") or case["fatal"])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_table_and_fields_name_the_same_options() -> None:
    fields = set(Options._fields) - {"given", "notices", "ignored"}

    assert fields == {name.replace("-", "_") for name in OPTIONS}


@pytest.mark.rule("H-9")
def test_lists_add_up_over_repeats_and_commas() -> None:
    options = options_of("--config", "a.yaml,b.yaml", "-config=c.yaml", "--config", '"d,e.yaml",f.yaml', "--config=")

    assert options.config == ("a.yaml", "b.yaml", "c.yaml", "d,e.yaml", "f.yaml")


@pytest.mark.rule("H-9")
def test_what_stands_behind_two_dashes_or_without_a_dash_is_ignored() -> None:
    options = options_of("--app-id", "a", "python", "-", "", "--", "--no-such-option")

    assert options.app_id == "a"
    assert options.given == {"app-id"}


@pytest.mark.rule("H-9")
def test_the_argument_after_an_option_is_its_value_whatever_it_looks_like() -> None:
    options = options_of("--app-id", "--app-port", "--max-body-size", "-10")

    assert options.app_id == "--app-port"
    assert options.max_body_size == "-10"
    assert options.app_port == ""


@pytest.mark.rule("H-9")
def test_deprecated_options_are_told_also_when_the_line_is_wrong_further_on() -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(["--app-ssl", "--nonsense"])

    assert caught.value.notices == ("Flag --app-ssl has been deprecated, use '--app-protocol https|grpcs'",)


@pytest.mark.rule("H-9")
def test_help_is_given_at_once_and_a_version_only_when_all_is_well() -> None:
    assert parse_arguments(["--help", "--nonsense"]) is Ask.HELP
    assert parse_arguments(["--version", "--build-info"]) is Ask.VERSION
    assert usage_error("--version", "--nonsense") == "unknown flag: --nonsense"


@pytest.mark.rule("H-151")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["---x"], "bad flag syntax: ---x"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-xy"], "unknown flag: --xy"),
        (["-é"], "unknown shorthand flag: 'é' in -é"),
        (["-'"], "unknown shorthand flag: '\\'' in -'"),
        (["--App-id=x"], "unknown flag: --App-id"),
        (
            ["--app-health-threshold=9223372036854775808"],
            (
                'invalid argument "9223372036854775808" for "--app-health-threshold" flag: '
                'strconv.ParseInt: parsing "9223372036854775808": value out of range'
            ),
        ),
        (
            ["--log-as-json=\n"],
            'invalid argument "\\n" for "--log-as-json" flag: strconv.ParseBool: parsing "\\n": invalid syntax',
        ),
        (
            ["--dapr-block-shutdown-duration="],
            'invalid argument "" for "--dapr-block-shutdown-duration" flag: time: invalid duration ""',
        ),
    ],
)
def test_odd_command_lines_get_the_parsers_own_words(arguments: list[str], text: str) -> None:
    assert usage_error(*arguments) == text


@pytest.mark.parametrize(
    ("flag", "hint"),
    [("--appport", "did you mean --app-port?"), ("--App-Id=x", "did you mean --app-id?"), ("--moon", "")],
)
def test_an_unknown_flag_comes_with_the_one_that_was_most_likely_meant(flag: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments([flag])

    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--log-level", "loud"], "; give debug, info, warn, error or fatal"),
        (["--app-protocol", "htp"], "; give http, https, h2c, grpc or grpcs"),
        (["--disable-init-endpoints", "conf"], "; give config or subscribe"),
        (["--app-port", "foo"], "; give a number from 0 to 65535"),
        (["--max-body-size", "huge"], "; give bytes, such as 4194304, 4Mi or 500k"),
    ],
)
def test_a_refusal_ends_with_what_can_be_given(arguments: list[str], remedy: str) -> None:
    assert refusal(*arguments).endswith(remedy)


@pytest.mark.rule("H-9")
@pytest.mark.parametrize(
    ("text", "number"), [("0x10", 16), ("010", 8), ("0b11", 3), ("1_000", 1000), ("-7", -7), ("+7", 7)]
)
def test_numbers_are_read_in_the_base_that_their_prefix_says(text: str, number: int) -> None:
    assert options_of("--app-max-concurrency", text).app_max_concurrency == number


def test_the_usage_text_has_a_line_for_each_option_and_says_which_do_nothing() -> None:
    text = usage("tieline sidecar", built=frozenset())

    assert text.startswith("Usage of tieline sidecar:\n")
    lines = {line.split()[0].rstrip(","): line for line in text.splitlines()[1:]}
    assert lines.keys() == {f"--{name}" for name, flag in OPTIONS.items() if not flag.hidden} | {"-h"}
    assert "no effect yet" in lines["--metrics-port"]
    assert "no effect yet" not in usage("x", built=frozenset(Feature))
    assert "stops the start" in lines["--enable-mtls"]


def test_the_usage_text_fits_a_terminal() -> None:
    wide, narrow, tiny = usage("x"), usage("x", width=79), usage("x", width=30)

    assert max(map(len, narrow.splitlines())) <= 79
    assert narrow.split() == wide.split()
    assert tiny == wide


# --- what the options mean -------------------------------------------------------------------------------------------


@pytest.mark.rule("H-11")
def test_the_defaults_are_daprds_except_that_the_apis_listen_on_loopback_only() -> None:
    settings = settings_of()

    assert (settings.http_port, settings.grpc_port, settings.internal_port) == (3500, 50001, None)
    assert settings.listen_addresses == LOOPBACK == ("127.0.0.1", "[::1]")
    assert settings.internal_listen_address is None
    assert (settings.public_port, settings.metrics_port, settings.profile_port) == (None, 9090, 7777)
    assert (settings.max_body_size, settings.read_buffer_size) == (4 * 1024**2, 4096)
    assert (settings.graceful_shutdown_s, settings.block_shutdown_s) == (5.0, None)
    assert settings.app_max_concurrency == 0
    assert settings.enable_api_logging is None
    assert (settings.log_level, settings.log_file, settings.unix_domain_socket) == ("info", None, None)
    assert (settings.health_checks.interval_s, settings.health_checks.timeout_s) == (5.0, 0.5)
    assert settings.health_checks.threshold == 3


@pytest.mark.rule("H-1")
def test_an_empty_listen_address_that_is_given_means_all_interfaces() -> None:
    assert settings_of("--dapr-listen-addresses", "").listen_addresses == ("",)
    assert settings_of("--dapr-listen-addresses", "[::1], 10.0.0.1").listen_addresses == ("[::1]", " 10.0.0.1")
    assert settings_of("--dapr-internal-grpc-listen-address=").internal_listen_address == ""


@pytest.mark.rule("H-11")
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--max-body-size", "16Mi"], 16 * 1024**2),
        (["--max-body-size", "0"], None),
        (["--max-body-size", "-2"], None),
        (["--max-body-size", "-1"], 4 * 1024**2),
        (["--dapr-http-max-request-size", "8"], 8 * 1024**2),
        (["--dapr-http-max-request-size", "-1"], 4 * 1024**2),
        (["--dapr-http-max-request-size", "8", "--max-body-size", "1k"], 1000),
    ],
)
def test_the_body_limit_is_a_quantity_and_wins_over_its_deprecated_twin(arguments: list[str], size: int | None) -> None:
    assert settings_of(*arguments).max_body_size == size


@pytest.mark.rule("H-11", "H-63")
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--read-buffer-size", "1Ki"], 1024),
        (["--read-buffer-size", "0"], 1024**2),
        (["--read-buffer-size=-1"], 4096),
        (["--dapr-http-read-buffer-size", "8"], 8192),
    ],
)
def test_a_read_buffer_of_nothing_is_a_mebibyte(arguments: list[str], size: int) -> None:
    assert settings_of(*arguments).read_buffer_size == size


@pytest.mark.rule("H-12")
def test_port_zero_is_any_free_port_and_conflicts_with_nothing() -> None:
    settings = settings_of("--dapr-http-port", "0", "--dapr-grpc-port", "0", "--app-port", "0")

    assert (settings.http_port, settings.grpc_port, settings.app_port) == (0, 0, None)


def test_one_port_for_both_apis_is_refused_unless_sockets_replace_them() -> None:
    text = refusal("--dapr-http-port", "41000", "--dapr-grpc-port", "41000")

    assert "--dapr-http-port and --dapr-grpc-port are both 41000" in text
    assert settings_of("--dapr-http-port=9", "--dapr-grpc-port=9", "--unix-domain-socket", "/run").http_port == 9


@pytest.mark.parametrize("name", ["dapr-http-port", "dapr-grpc-port", "dapr-internal-grpc-port", "dapr-public-port",
                                  "app-port", "metrics-port", "profile-port"])  # fmt: skip
def test_a_port_out_of_range_is_named(name: str) -> None:
    assert f"--{name} 65536 is no port (0 to 65535)" in refusal(f"--{name}", "65536")


@pytest.mark.rule("H-151")
def test_a_fatal_option_knows_its_first_words() -> None:
    with pytest.raises(FatalOption) as runtime:
        settings_of("--app-port", "9" * 30)
    with pytest.raises(FatalOption) as flags:
        settings_of("--max-body-size", "5z")
    with pytest.raises(FatalOption) as bare:
        settings_of("--log-level", "warning")

    assert (runtime.value.prefix, flags.value.prefix, bare.value.prefix) == (RUNTIME, FLAGS, "")
    assert "value out of range; " in runtime.value.message
    assert str(flags.value) == flags.value.prefix + flags.value.message


@pytest.mark.rule("H-11")
@pytest.mark.parametrize(
    ("given", "protocol"),
    [("HTTP", "https"), ("grpc", "grpcs"), ("h2c", "h2c"), ("https", "https"), ("GRPCS", "grpcs")],
)
def test_app_ssl_turns_a_plain_protocol_into_its_tls_form(given: str, protocol: str) -> None:
    assert settings_of("--app-protocol", given, "--app-ssl").app_protocol == protocol


@pytest.mark.rule("H-11")
def test_odd_health_values_become_their_defaults_and_a_path_gets_its_slash() -> None:
    checks = settings_of(
        "--app-health-probe-interval", "0", "--app-health-probe-timeout=-5", "--app-health-threshold", "0",
        "--app-health-check-path", "ok",
    ).health_checks  # fmt: skip

    assert checks == (False, "/ok", 5.0, 0.5, 3)


@pytest.mark.rule("H-11", "H-146")
@pytest.mark.parametrize(
    ("arguments", "grace", "block"),
    [
        (["--dapr-graceful-shutdown-seconds", "0"], None, None),
        (["--dapr-graceful-shutdown-seconds=-3"], 5.0, None),
        (["--dapr-graceful-shutdown-seconds", "20", "--dapr-block-shutdown-duration", "0s"], 20.0, 0.0),
        (["--dapr-block-shutdown-duration", "1m30s"], 5.0, 90.0),
    ],
)
def test_shutdown_times(arguments: list[str], grace: float | None, block: float | None) -> None:
    settings = settings_of(*arguments)

    assert (settings.graceful_shutdown_s, settings.block_shutdown_s) == (grace, block)


@pytest.mark.rule("H-11")
def test_init_endpoints_are_trimmed_and_in_any_case() -> None:
    assert settings_of("--disable-init-endpoints", " CONFIG,,subscribe").disable_init_endpoints == {
        "config",
        "subscribe",
    }


@pytest.mark.rule("H-11")
def test_components_path_counts_only_where_resources_path_is_absent() -> None:
    assert settings_of("--components-path", "old").resources_paths == ("old",)
    assert settings_of("--components-path", "old", "--resources-path", "a,b").resources_paths == ("a", "b")


def test_a_refusal_is_one_line_whatever_was_typed() -> None:
    assert refusal("--mode", "a\nb\udcff") == "Fatal error from runtime: invalid mode: a\\nb\\udcff"
    assert usage_error("--a\nb") == "unknown flag: --a\\nb"


def test_kubernetes_mode_is_refused_with_what_to_do() -> None:
    assert "leave out --mode" in refusal("--mode", "kubernetes")


# --- what this version does with them --------------------------------------------------------------------------------


def test_an_option_that_protects_stops_the_start_until_it_is_built() -> None:
    options = options_of("--app-id", "a", "--enable-mtls")

    with pytest.raises(ProtectionNotBuilt, match="--enable-mtls is given, but this version does not enforce mTLS"):
        check(options, {}, built=frozenset())

    assert check(options, {}, built=frozenset({Feature.MTLS})).enable_mtls
    assert not check(options_of("--app-id", "a", "--enable-mtls=false"), {}, built=frozenset()).enable_mtls


def test_an_api_token_stops_the_start_until_it_is_built_and_is_not_shown() -> None:
    environ = {"DAPR_API_TOKEN": "s3cret"}
    options = options_of("--app-id", "a")

    with pytest.raises(ProtectionNotBuilt, match="DAPR_API_TOKEN is set") as caught:
        check(options, environ, built=frozenset())

    settings = check(options, environ, built=frozenset({Feature.API_TOKEN}))
    assert settings.api_token == "s3cret"
    assert "s3cret" not in str(caught.value) + repr(settings)
    assert check(options, {"DAPR_API_TOKEN": ""}, built=frozenset()).api_token is None


def test_given_options_without_effect_are_told_and_those_in_effect_are_not() -> None:
    options = options_of(
        "--app-id", "a", "--metrics-port", "1", "--dapr-grpc-port", "2", "--allowed-origins", "*",
        "--enable-api-logging=false", "--enable-profiling", "--resources-path", "x", "--enable-mtls",
    )  # fmt: skip

    assert ineffective(options, built=frozenset()) == (
        "--allowed-origins", "--dapr-grpc-port", "--enable-profiling", "--metrics-port", "--resources-path",
    )  # fmt: skip
    assert ineffective(options, built=frozenset(Feature)) == ()


def test_every_feature_is_needed_by_something() -> None:
    """A feature that nothing asks for is a typing error of ours."""
    from tieline.config import configuration

    flags: list[Flag] = list(OPTIONS.values())
    needed = {flag.feature for flag in flags} | set(vars(configuration)["_NEEDS"].values()) | {Feature.API_TOKEN}

    assert needed - {None} == set(Feature)


@pytest.mark.parametrize("token", ["geheim\n", "\rgeheim", "ge\x7fheim", " geheim", "geheim "])
def test_a_token_that_no_header_could_equal_stops_the_start_and_is_not_shown(token: str) -> None:
    with pytest.raises(FatalOption, match="DAPR_API_TOKEN") as caught:
        check(options_of("--app-id", "a"), {"DAPR_API_TOKEN": token})

    assert "geheim" not in str(caught.value)
