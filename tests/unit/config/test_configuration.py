"""Configuration files: what daprd was recorded to make of them, merging, protections and bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tieline.config import configuration as module
from tieline.config.built import Feature
from tieline.config.configuration import MAX_FILE_BYTES, Configuration, load_configuration
from tieline.config.fatal import FatalOption, ProtectionNotBuilt
from tieline.config.yaml_nodes import MAX_DEPTH, MAX_NODES

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "configuration_cases.json").read_text(encoding="utf-8"))
NOTHING: frozenset[Feature] = frozenset()
EVERYTHING = frozenset(Feature)


class Folder:
    """Writes Configuration files and loads them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *texts: str | bytes | None) -> list[str]:
        """Write the texts as ``c0.yaml`` and so on, ``None`` as a missing file; return their paths."""
        paths = [self.path / f"c{number}.yaml" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            if text is not None:
                path.write_bytes(text.encode() if isinstance(text, str) else text)
        return [str(path) for path in paths]

    def load(
        self,
        *texts: str | bytes | None,
        environ: Mapping[str, str] | None = None,
        built: frozenset[Feature] = EVERYTHING,
    ) -> Configuration:
        return load_configuration(self.write(*texts), environ or {}, built=built)

    def refusal(self, *texts: str | bytes | None, built: frozenset[Feature] = EVERYTHING) -> str:
        with pytest.raises(FatalOption) as caught:
            self.load(*texts, built=built)
        text = str(caught.value)
        assert "\n" not in text
        assert text.startswith("Fatal error from runtime: ")
        return text.removeprefix("Fatal error from runtime: ")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def cases(*, starts: bool) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in RECORDED["cases"] if ("fatal" in case) is not starts]


def files_of(case: Mapping[str, Any]) -> list[str | bytes | None]:
    """Return the files of a recording: each character of a text is a byte."""
    return [
        None if text is None else text.replace("{head}", RECORDED["head"]).encode("latin-1") for text in case["files"]
    ]


@pytest.mark.rule("C-1", "C-2", "C-3", "C-4", "C-13", "C-19")
@pytest.mark.parametrize("case", cases(starts=True))
def test_files_that_daprd_starts_with_give_its_features_and_metric_section(
    case: dict[str, Any], folder: Folder
) -> None:
    configuration = folder.load(*files_of(case), environ=case.get("environment"))

    assert sorted(configuration.enabled_features()) == case["features"]
    if "metric" in case:
        assert configuration.metric.given == case["metric"]


@pytest.mark.rule("C-2", "C-21", "C-37", "C-66", "C-91", "H-14")
@pytest.mark.parametrize("case", cases(starts=False))
def test_files_that_daprd_refuses_are_refused_in_its_first_words(case: dict[str, Any], folder: Folder) -> None:
    with pytest.raises(FatalOption) as caught:
        folder.load(*files_of(case), environ=case.get("environment"))

    text = str(caught.value)
    assert text.startswith(case["fatal"].replace("{dir}", str(folder.path)))
    assert "\n" not in text
    if "line" in case:
        assert f"line {case['line']}: " in text


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("C-2", "H-14")
def test_a_folder_and_a_file_out_of_reach_are_named(folder: Folder) -> None:
    (file,) = folder.write("spec: {}")

    for path, text in [
        (str(folder.path), f"read {folder.path}: is a directory"),
        (f"{file}/x", f"stat {file}/x: not a directory"),
    ]:
        with pytest.raises(FatalOption) as caught:
            load_configuration([path], {})
        assert caught.value.message == f"error loading configuration: {text}"


@pytest.mark.rule("C-2")
def test_an_error_names_file_line_and_field(folder: Folder) -> None:
    text = folder.refusal("spec:\n  tracing:\n    otel:\n      isSecure: perhaps\n")

    assert "line 4: spec.tracing.otel.isSecure must be true or false, not the value 'perhaps'" in text
    assert text.endswith(f"(in {folder.path}/c0.yaml)")


@pytest.mark.rule("C-2")
@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("tracing: x", "spec.tracing must be a mapping, not the value 'x'"),
        ("tracing: {samplingRate: [1]}", "spec.tracing.samplingRate must be a text, not a list"),
        ("tracing: {otel: {timeout: abc}}", "spec.tracing.otel.timeout must be a duration such as 5s"),
        ("features: [{name: {}}]", "spec.features[0].name must be a text, not a mapping"),
        ("metric: {latencyDistributionBuckets: [1.5]}", "latencyDistributionBuckets[0] must be a whole number"),
        ('metric: {enabled: "yes"}', "spec.metric.enabled must be true or false"),
        ("metric: {rules: [{labels: [{regex: []}]}]}", "labels[0].regex must be a mapping, not a list"),
        ("{? [a] : b}", "a key must be a text, not a list"),
        ("*nowhere", "unknown anchor 'nowhere' referenced"),
        ("&a [*a]", "anchor 'a' value contains itself"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(spec: str, text: str, folder: Folder) -> None:
    assert text in folder.refusal(f"spec:\n  {spec}\n")


def test_a_long_or_broken_value_is_shown_short_and_on_one_line(folder: Folder) -> None:
    text = folder.refusal('spec: "' + "\\n" + "x" * 5000 + '"')

    assert f"spec must be a mapping, not the value '\\n{'x' * 59}…'" in text


@pytest.mark.rule("C-2")
def test_numbers_are_texts_where_texts_are_wanted_and_yes_is_a_truth_value(folder: Folder) -> None:
    configuration = folder.load("spec: {tracing: {samplingRate: 0.50}, features: [{name: 1, enabled: on}]}")

    assert configuration.tracing.sampling_rate == "0.50"
    assert ("1", True) in configuration.features


def test_anchors_aliases_and_merge_keys_work(folder: Folder) -> None:
    configuration = folder.load(
        "base: &base {name: A, enabled: true}\n"
        "spec: {features: [*base, {<<: *base, name: B}, {<<: [{name: C}, *base], enabled: false}]}\n"
    )

    assert configuration.features[:3] == (("A", True), ("B", True), ("C", False))


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_huge_file_is_refused_before_and_after_the_environment_is_put_in(folder: Folder) -> None:
    assert f"is longer than {MAX_FILE_BYTES} bytes" in folder.refusal(b"#" * (MAX_FILE_BYTES + 1))
    assert folder.load(b"#" * MAX_FILE_BYTES)

    with pytest.raises(FatalOption, match="once the environment is put in"):
        folder.load("#$X$X", environ={"X": "x" * (MAX_FILE_BYTES // 2)})


@pytest.mark.timeout(5)
def test_an_alias_bomb_is_refused(folder: Folder) -> None:
    layers = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))

    text = folder.refusal(f"l0: &l0 [x]\n{layers}")

    assert f"more than {MAX_NODES} values" in text


@pytest.mark.parametrize("opening", ["[", "- ", "{a: "])
@pytest.mark.parametrize("times", [MAX_DEPTH + 1, 50_000])
def test_deep_nesting_is_refused_before_the_stack_ends(opening: str, times: int, folder: Folder) -> None:
    # The parser looks ahead and has a bound of its own, which is met first where everything stands on one line.
    assert re.search(rf"nested deeper than {MAX_DEPTH} levels|maximum nesting depth", folder.refusal(opening * times))


def test_nesting_within_the_bound_is_read(folder: Folder) -> None:
    assert folder.load("x: " + "[" * (MAX_DEPTH - 1) + "y" + "]" * (MAX_DEPTH - 1))


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("C-5")
def test_without_files_the_start_values_hold() -> None:
    configuration = load_configuration([], {}, built=NOTHING)

    assert configuration.access_control == {"defaultAction": "allow", "trustDomain": "public"}
    assert configuration.metric.enabled
    assert configuration.metric.given == {"enabled": True}
    assert configuration.name_resolution is None
    assert (configuration.ineffective, configuration.tracing.off) == ((), False)
    assert configuration.enabled_features() == ("HotReload", "WorkflowsRemoteActivityReminder")


@pytest.mark.rule("C-4", "C-5")
def test_a_block_is_laid_over_the_start_values_key_by_key_and_null_clears(folder: Folder) -> None:
    policy = "{appId: a, trustDomain: t, namespace: n}"

    laid_over = folder.load(f"spec: {{accessControl: {{policies: [{policy}]}}}}")
    cleared = folder.load("spec: {accessControl: null}")

    assert laid_over.access_control is not None
    assert laid_over.access_control["defaultAction"] == "allow"
    assert cleared.access_control is None


@pytest.mark.rule("C-4")
def test_maps_merge_by_key_and_lists_are_replaced_whole(folder: Folder) -> None:
    configuration = folder.load(
        "spec: {nameResolution: {component: sqlite, configuration: {a: 1}}, features: [{name: A, enabled: true}]}",
        "spec: {nameResolution: {version: v2}, features: []}",
        "spec:\n",
    )

    assert configuration.name_resolution is not None
    assert configuration.name_resolution[:3] == ("sqlite", "v2", {"a": 1})
    assert configuration.enabled_features() == ("HotReload", "WorkflowsRemoteActivityReminder")


@pytest.mark.rule("C-13")
def test_metrics_is_laid_over_metric_field_by_field(folder: Folder) -> None:
    metric = folder.load(
        "spec:\n"
        "  metric: {enabled: false, recordErrorCodes: true, latencyDistributionBuckets: [9],\n"
        "           http: {excludeVerbs: true, pathMatching: [/a]},\n"
        "           rules: [{name: r, labels: [{name: l, regex: {new: 'old.*', other: x}}]}]}\n"
        "  metrics: {http: {increasedCardinality: false}, latencyDistributionBuckets: []}\n"
    ).metric

    assert not metric.enabled
    assert metric.record_error_codes
    assert metric.latency_buckets_ms == (9,)
    assert (metric.increased_cardinality, metric.exclude_verbs, metric.path_matching) == (False, False, ())
    assert metric.rules == (("r", (("l", (("new", "old.*"), ("other", "x"))),)),)


@pytest.mark.rule("C-6")
def test_what_is_checked_and_completed_is_all_files_together(folder: Folder) -> None:
    """Not each file by itself: a later one may repair an earlier one, or be overruled by it."""
    early = (
        "spec: {secrets: {scopes: [{storeName: s}, {storeName: s}]}, metrics: {enabled: false},"
        " features: [{name: HotReload, enabled: false}]}"
    )
    late = "spec: {secrets: {scopes: [{storeName: s}]}, metric: {enabled: true}}"
    replaced = "spec: {features: [{name: Other, enabled: true}]}"

    loaded = folder.load(early, late)

    assert not loaded.metric.enabled
    assert loaded.enabled_features() == ("WorkflowsRemoteActivityReminder",)
    assert set(folder.load(early, late, replaced).enabled_features()) == {
        *("Other", "HotReload", "WorkflowsRemoteActivityReminder")
    }
    # The secrets are looked at first, so what comes later cannot hide what is wrong with them.
    assert "storeName is repeated" in folder.refusal(late, early)


@pytest.mark.rule("C-19")
def test_a_later_entry_takes_a_feature_out_and_half_an_entry_does_nothing(folder: Folder) -> None:
    configuration = folder.load(
        "spec:\n  features:\n"
        "  - {name: A, enabled: true}\n"
        "  - {name: B, enabled: true}\n"
        "  - {name: A, enabled: false}\n"
        "  - {name: B}\n"
        "  - {enabled: true}\n"
        "  - {name: hotreload, enabled: true}\n"
        "  - {name: HotReload, enabled: false}\n"
    )

    assert configuration.enabled_features() == ("B", "hotreload", "WorkflowsRemoteActivityReminder")


# --- what the parts say ----------------------------------------------------------------------------------------------


@pytest.mark.rule("O-1")
@pytest.mark.parametrize(("rate", "off"), [("0", True), ('"0.0"', True), ("-1", True), ("abc", False), ("''", False)])
def test_tracing_is_off_at_a_rate_of_nothing(rate: str, off: bool, folder: Folder) -> None:
    assert folder.load(f"spec: {{tracing: {{samplingRate: {rate}}}}}").tracing.off is off


def test_a_chosen_resolver_knows_where_it_was_chosen(folder: Folder) -> None:
    spec = folder.load(
        "spec:\n  nameResolution:\n    component: Consul\n"
        "    configuration: {selfRegister: true, port: 0x10, tags: [a, '1'], timeout: 5s, ratio: 1.5, none: ~}\n"
    ).name_resolution

    assert spec is not None
    assert (spec.component, spec.version) == ("Consul", "v1")
    assert spec.configuration == {
        "selfRegister": True, "port": 16, "tags": ["a", "1"], "timeout": "5s", "ratio": 1.5, "none": None,
    }  # fmt: skip
    assert str(spec.place) == f"{folder.path}/c0.yaml line 3"


def test_api_logging_and_pipelines_are_kept(folder: Folder) -> None:
    configuration = folder.load(
        "spec:\n"
        "  logging: {apiLogging: {enabled: true, obfuscateURLs: true}}\n"
        "  httpPipeline: {handlers: [{name: u, type: middleware.http.uppercase}]}\n"
    )

    assert configuration.api_logging == (True, True, False)
    assert configuration.http_pipeline == ({"name": "u", "type": "middleware.http.uppercase"},)


# --- protections, and what has no effect -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("accessControl: {defaultAction: deny}", "spec.accessControl"),
        ("accessControl: {defaultAction: Perhaps}", "spec.accessControl"),
        ("accessControl: {defaultAction: ''}", "spec.accessControl"),
        ("accessControl: {defaultAction: null}", "spec.accessControl"),
        ("accessControl: {policies: [{appId: a, trustDomain: t, namespace: n}]}", "spec.accessControl"),
        ("api: {allowed: [{name: invoke, version: v1, protocol: http}]}", "spec.api"),
        ("api: {denied: [{name: invoke, version: v1}]}", "spec.api"),
        ("httpPipeline: {handlers: [{name: b, type: middleware.http.bearer}]}", "spec.httpPipeline"),
        ("appHttpPipeline: {handlers: [{name: o, type: middleware.http.OPA}]}", "spec.appHttpPipeline"),
    ],
)
def test_a_block_that_protects_stops_the_start_until_it_is_built(spec: str, named: str, folder: Folder) -> None:
    with pytest.raises(ProtectionNotBuilt) as caught:
        folder.load(f"spec:\n  {spec}\n", built=NOTHING)

    assert caught.value.message.startswith(f"{named} ({folder.path}/c0.yaml line 2) restricts calls, but this version")
    assert folder.load(f"spec:\n  {spec}\n", built=EVERYTHING)


@pytest.mark.rule("C-5")
@pytest.mark.parametrize(
    "spec",
    [
        "accessControl: {defaultAction: ALLOW}",
        "accessControl: {trustDomain: other}",
        "accessControl: {defaultAction: '', policies: []}",
        "accessControl: {defaultAction: '', trustDomain: ''}",
        "accessControl:",
        "api: {allowed: [], denied: null}",
        "httpPipeline: {handlers: [{name: u, type: middleware.http.uppercase}]}",
    ],
)
def test_a_block_that_restricts_nothing_does_not_stop_the_start(spec: str, folder: Folder) -> None:
    assert folder.load(f"spec:\n  {spec}\n", built=NOTHING)


@pytest.mark.rule("C-3", "C-20")
def test_given_blocks_without_effect_and_unknown_keys_are_told(folder: Folder) -> None:
    text = (
        "nosuch: 1\nkind: Nonsense\nspec:\n  mtls: {enabled: true}\n  Features: []\n"
        "  tracing: {samplingRate: 1, zipkin: {endpointAddress: 'http://x', port: 1}}\n"
    )

    configuration = folder.load(text, built=NOTHING)

    assert configuration.ineffective == ("spec.tracing.zipkin", "spec.mtls")
    assert folder.load(text, built=EVERYTHING).ineffective == ()
    assert {key: (found.place.line, found.guess) for key, found in configuration.unknown.items()} == {
        "nosuch": (1, ""),
        "spec.Features": (5, "features"),
        "spec.tracing.zipkin.port": (6, ""),
    }


def test_a_start_without_files_imports_no_yaml() -> None:
    """The YAML library costs more time than all the rest of reading the settings."""
    import subprocess
    import sys

    code = (
        "import sys; from tieline.config.options import check, parse_arguments;"
        "from tieline.config.configuration import load_configuration;"
        "check(parse_arguments(['--app-id', 'a']), {}); load_configuration((), {});"
        "heavy = {'yaml', 'csv', 'asyncio', 'socket', 'ssl', 'pydantic', 'click'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    source = str(Path(module.__file__).parents[2])

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
