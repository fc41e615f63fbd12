"""Folders of resource files: what daprd was recorded to make of them, mistakes, bounds, references and reloading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tieline.config import folders, manifests
from tieline.config.changes import changed_resources, new_notices
from tieline.config.fatal import FatalOption
from tieline.config.resource_set import Notice, Resources
from tieline.config.resources import load_resources

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "resource_cases.json").read_text("utf-8"))
APP_ID = "app-a"
DIFFERENT = {"duplicate of which one is out of scope (second)"}
"""Recorded cases in which Tieline does otherwise on purpose: a resource for another app has no part in ours."""

ENDPOINT = """\
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata:
  name: {name}
spec:
  baseUrl: {url}
"""


def endpoint(name: str = "ext", url: str = "http://127.0.0.1:1", more: str = "") -> str:
    return ENDPOINT.format(name=name, url=url) + more


def component(name: str, kind: str = "middleware.http.uppercase", more: str = "") -> str:
    text = f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {name}\n"
    return f"{text}spec:\n  type: {kind}\n  version: v1\n{more}"


class Folders:
    """Writes folders of resource files and reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = path / "r0"
        self.first.mkdir()

    def write(self, name: str, text: str | bytes, folder: str = "r0") -> Path:
        file = self.path / folder / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def load(self, environ: Mapping[str, str] | None = None, previous: Resources | None = None) -> Resources:
        found = sorted(str(path) for path in self.path.glob("r?"))
        return load_resources(found, app_id=APP_ID, environ=environ or {}, previous=previous)

    def refusal(self, environ: Mapping[str, str] | None = None) -> str:
        with pytest.raises(FatalOption) as caught:
            self.load(environ)
        text = str(caught.value)
        assert "\n" not in text
        return text


@pytest.fixture
def files(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def write_case(files: Folders, case: Mapping[str, Any]) -> None:
    for number, folder in enumerate(case["folders"]):
        for name, text in folder.items():
            file = files.write(name, text.encode("latin-1") if name == "binary" else text, f"r{number}")
            assert file.exists()


def texts(resources: Resources, level: str = "warning") -> list[str]:
    return [notice.text for notice in resources.notices if notice.level == level]


# ── as recorded ────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("C-50", "C-51", "C-53", "C-54", "C-55", "C-57", "H-15", "H-16")
@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in RECORDED if "fatal" not in case])
def test_what_daprd_takes_from_a_folder_is_taken(case: dict[str, Any], files: Folders) -> None:
    write_case(files, case)

    resources = files.load(case.get("environment"))

    assert list(resources.components) == case["components"]
    assert list(resources.http_endpoints) == case["http_endpoints"]
    warned = [text for text in texts(resources) if "no effect" not in text and "not applied" not in text]
    assert len(warned) >= case["warnings"]
    assert all("\n" not in text for text in warned)


@pytest.mark.rule("C-51", "C-54", "C-58")
@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in RECORDED if "fatal" in case])
def test_what_ends_daprd_ends_the_start_with_its_first_words(case: dict[str, Any], files: Folders) -> None:
    write_case(files, case)

    if case["name"] in DIFFERENT:
        assert list(files.load().components) == ["a"]
    else:
        assert files.refusal(case.get("environment")).startswith(case["fatal"])


# ── folders and files ──────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("C-52", "H-15")
@pytest.mark.parametrize(
    ("watch", "words"),
    [
        (True, "failed to create watcher: failed to add target {}: no such file or directory"),
        (False, "failed to load components: open {}: no such file or directory"),
    ],
)
def test_a_missing_folder_ends_the_start(watch: bool, words: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")

    with pytest.raises(FatalOption, match=r"; make the folder") as caught:
        load_resources([missing], app_id=APP_ID, environ={}, watch=watch)

    assert str(caught.value).startswith("Fatal error from runtime: " + words.format(missing))


@pytest.mark.rule("C-52")
def test_a_file_in_place_of_a_folder_ends_the_start(files: Folders) -> None:
    file = str(files.write("a.yaml", endpoint()))

    with pytest.raises(FatalOption, match=f"failed to load components: open {file}: not a directory"):
        load_resources([file], app_id=APP_ID, environ={})


@pytest.mark.rule("C-50")
def test_a_folder_given_twice_is_read_once(files: Folders) -> None:
    files.write("a.yaml", component("a"))
    again = files.path / "again"
    again.symlink_to(files.first)

    resources = load_resources([str(files.first), str(again)], app_id=APP_ID, environ={})

    assert list(resources.components) == ["a"]


@pytest.mark.rule("C-50")
def test_files_behind_links_are_read_as_kubernetes_mounts_them(files: Folders) -> None:
    files.write("ext.yaml", endpoint(), "r0/..2024_01")
    (files.first / "..data").symlink_to("..2024_01")
    (files.first / "ext.yaml").symlink_to("..data/ext.yaml")

    resources = files.load()

    assert list(resources.http_endpoints) == ["ext"]
    assert resources.notices == ()


def test_a_pipe_and_a_dead_link_are_told_of_and_never_waited_for(files: Folders) -> None:
    os.mkfifo(files.first / "pipe.yaml")
    (files.first / "dead.yaml").symlink_to("nowhere")
    files.write("z.yaml", endpoint())

    resources = files.load()

    assert list(resources.http_endpoints) == ["ext"]
    assert [text.partition(": ")[2] for text in texts(resources)] == [
        "no such file or directory",
        "it is not a regular file",
    ]


def test_a_file_over_the_bound_and_files_over_theirs_are_left_out(
    files: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_FILES", 2)
    monkeypatch.setattr("tieline.config.resources.MAX_FILES", 2)
    files.write("a.yaml", b"#" * (folders.MAX_FILE_BYTES + 1))
    files.write("b.yaml", endpoint("b"))
    files.write("c.yaml", endpoint("c"))

    resources = files.load()

    assert list(resources.http_endpoints) == ["b"]
    assert any("more than 2 files; the last 1 are not read" in text for text in texts(resources))
    assert any("a.yaml cannot be read: it is longer than 10485760 bytes" in text for text in texts(resources))


# ── documents ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("C-51", "H-15")
@pytest.mark.parametrize("filler", ["# x\n" * 20_000, "# " + "x" * 100_000 + "\n"], ids=["lines", "one line"])
def test_a_document_of_any_length_is_read(filler: str, files: Folders) -> None:
    """A document over 64 KiB keeps daprd busy for ever."""
    files.write("a.yaml", endpoint() + filler + "---\n" + endpoint("after"))

    assert list(files.load().http_endpoints) == ["ext", "after"]


@pytest.mark.rule("C-51", "H-15")
@pytest.mark.parametrize(
    ("broken", "line", "reason"),
    [
        ("foo: [", 8, "did not find expected node content"),
        ("a: b: c", 8, "mapping values are not allowed in this context"),
        ("a:\n\tc: d", 9, "found character that cannot start any token"),
        ("a: &a [*a]", 8, "anchor 'a' value contains itself"),
        ('a: "\0"', None, "control characters are not allowed"),
        ("- a list", 8, "the document must be a mapping, not a list"),
        (endpoint("x") + "  headers: {a: b}", 14, "spec.headers must be a list, not a mapping"),
        (endpoint("x") + "  clientTLS: {rootCA: text}", 14, "spec.clientTLS.rootCA must be a mapping"),
        (endpoint("x") + "scopes: app-a", 14, "scopes must be a list"),
        (endpoint("x").replace("x", "[x]"), 11, "metadata.name must be a text, not a list"),
        (endpoint("..").replace("..", '".."'), 8, "invalid name \"..\": may not be '..'"),
        (endpoint("a%b"), 8, "may not contain '%'"),
    ],
)
def test_a_broken_document_is_one_warning_and_hides_no_other(
    broken: str, line: int | None, reason: str, files: Folders
) -> None:
    text = endpoint("before") + "---\n" + broken + "\n---\n" + endpoint("after")
    file = files.write("a.yaml", text)

    resources = files.load()

    assert list(resources.http_endpoints) == ["before", "after"]
    (warning,) = texts(resources)
    place = str(file) if line is None else f"{file} line {line}"
    assert f"error when parsing manifests yaml resource in {place}: " in warning
    assert reason in warning


@pytest.mark.parametrize(
    "data",
    [
        endpoint().encode()[:-9] + b"\xff\xfe\n",
        b"\x00\x01\xff",
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(8)),
        b"[" * 100_000,
        endpoint("half").encode()[:-30],
    ],
    ids=["not UTF-8", "binary", "alias bomb", "deep", "half-written"],
)
def test_hostile_bytes_are_one_warning_at_most(data: bytes, files: Folders) -> None:
    files.write("a.yaml", data)
    files.write("b.yaml", endpoint())

    resources = files.load()

    assert "ext" in resources.http_endpoints
    assert len(texts(resources)) <= 1
    assert len(resources.notices) <= 2


def test_documents_over_their_bound_are_not_read(files: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_DOCUMENTS", 2)
    files.write("a.yaml", "---\n".join(endpoint(name) for name in "abc"))

    resources = files.load()

    assert list(resources.http_endpoints) == ["a", "b"]
    assert "line 14: only 2 documents of a file are read" in texts(resources)[0]


def test_values_over_their_bound_are_not_read_in_whatever_document_or_file(
    files: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "MAX_VALUES", 100)
    values = f"  x: [{','.join('1' * 60)}]\n"
    files.write("a.yaml", endpoint("a", more=values) + "---\nx: [1" + ",1" * 60)
    files.write("b.yaml", endpoint("b"))

    resources = files.load()

    assert list(resources.http_endpoints) == ["a"]
    assert "b.yaml line 1: only 100 values are read" in texts(resources)[-1]


@pytest.mark.rule("C-51")
@pytest.mark.parametrize(
    "text",
    [
        "---\n" + endpoint() + "---\n---\n" + endpoint("b"),
        "\ufeff" + endpoint() + "---   \n" + endpoint("b") + "---",
        endpoint() + "-----\n" + endpoint("b"),
        endpoint() + "---#x\n" + endpoint("b"),
        "%YAML 1.1\n---\n" + endpoint() + "...\n---\n" + endpoint("b"),
        '--- {"apiVersion": "dapr.io/v1alpha1", "kind": "HTTPEndpoint", "metadata": {"name": "ext"}, "spec": {}}\n---\n'
        + endpoint("b"),
        endpoint() + "---\n# nothing\n---\nnull\n---\n" + endpoint("b"),
        endpoint().replace("\n", "\r\n") + "---\r\n" + endpoint("b"),
    ],
)
def test_documents_are_split_where_daprd_or_yaml_splits_them(text: str, files: Folders) -> None:
    files.write("a.yaml", text.encode())

    assert list(files.load().http_endpoints) == ["ext", "b"]


def test_a_certificate_that_is_not_indented_does_not_split_a_document(files: Folders) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    files.write("a.yaml", endpoint(more=f'  clientTLS:\n    rootCA:\n      value: "\n{pem}\n"\n'))

    (found,) = files.load().http_endpoints.values()

    assert found.root_ca is not None
    assert found.root_ca.strip().startswith("-----BEGIN CERTIFICATE-----")
    assert found.problem == ""


@pytest.mark.rule("C-51", "H-96")
def test_names_of_fields_are_read_in_any_case_and_scalars_as_texts(files: Folders) -> None:
    text = (
        "APIVERSION: dapr.io/v1alpha1\nKind: HTTPEndpoint\nMetadata: {Name: 17}\nnosuch: 1\n"
        "SPEC:\n  version: v1\n  baseURL: http://127.0.0.1:1/x\n"
        "  Headers: [{NAME: A, value: 5}, {name: b, Value: true}, {name: c, value: 1.50}, {name: d, value: [1, x]},\n"
        "    {name: e, value: 2020-01-01}, {name: f, value: }, {name: g, value: {a: True}}]\n"
    )
    files.write("a.yaml", text)

    found = files.load().http_endpoints["17"]

    assert found.base_url == "http://127.0.0.1:1/x"
    assert dict(found.headers) == {
        b"a": b"5",
        b"b": b"true",
        b"c": b"1.50",
        b"d": b'[1,"x"]',
        b"e": b"2020-01-01",
        b"f": b"",
        b"g": b'{"a":true}',
    }
    assert (found.problem, found.line) == ("", 1)


def test_a_key_that_stands_twice_is_told_of_and_the_last_counts(files: Folders) -> None:
    files.write("a.yaml", endpoint(more="  baseUrl: http://127.0.0.1:2\n"))

    resources = files.load()

    assert resources.http_endpoints["ext"].base_url == "http://127.0.0.1:2"
    assert "line 7: the key 'baseUrl' already stands at line 6; the last one counts" in texts(resources)[0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("kind: HTTPEndpoint", "kind: httpEndpoint", "kind must be HTTPEndpoint, not httpEndpoint"),
        ("v1alpha1", "v1beta1", "apiVersion must be dapr.io/v1alpha1, not dapr.io/v1beta1"),
        ("dapr.io/v1alpha1", "Dapr.io/v1alpha1", "apiVersion must be dapr.io/v1alpha1"),
        ("kind: HTTPEndpoint", "kind: Deployment", ""),
        ("dapr.io/v1alpha1", "apps/v1", ""),
        ("kind: HTTPEndpoint", "kind: Subscription", ""),
    ],
)
def test_what_daprd_passes_over_is_passed_over_but_a_near_miss_is_told(
    old: str, new: str, told: str, files: Folders
) -> None:
    files.write("a.yaml", endpoint().replace(old, new))

    resources = files.load()

    assert resources.http_endpoints == {}
    assert [told in text for text in texts(resources)] == ([True] if told else [])


# ── kinds ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("C-57")
def test_components_of_other_building_blocks_are_one_line(files: Folders) -> None:
    files.write("a.yaml", component("s", "state.redis") + "---\n" + component("p", "pubsub.redis"))

    resources = files.load()

    assert resources.components == {}
    assert resources.notices == (
        Notice(
            "info", "components that this version of Tieline makes no use of: s (state.redis/v1), p (pubsub.redis/v1)"
        ),
    )


@pytest.mark.rule("C-57")
def test_policies_and_configurations_in_a_folder_are_told_to_have_no_effect(files: Folders) -> None:
    for kind in ("Resiliency", "Configuration"):
        files.write(f"{kind}.yaml", endpoint().replace("HTTPEndpoint", kind))

    resources = files.load()

    assert sorted(text.partition(" (")[0] for text in texts(resources)) == [
        "Configuration ext",
        "given, but of no effect in this version of Tieline: Resiliency ext",
    ]


@pytest.mark.rule("C-54", "C-58")
def test_all_mistakes_that_end_the_start_are_told_at_once(files: Folders) -> None:
    files.write("a.yaml", "---\n".join([component("a"), component("a", "middleware.http.wasm"), component("b", "x.y")]))

    text = files.refusal()

    assert "failed to load components: duplicate definition of Component name a (middleware.http.wasm/v1) with" in text
    assert "process component b error: incorrect type x.y" in text


@pytest.mark.rule("C-58")
def test_an_unknown_family_is_no_end_where_errors_are_ignored(files: Folders) -> None:
    files.write("a.yaml", component("b", "x.y", "  ignoreErrors: true\n"))

    assert "incorrect type x.y" in texts(files.load(), "error")[0]


@pytest.mark.rule("C-8", "C-58")
@pytest.mark.parametrize("denied", ["secretstores.local.env", "secretstores.local.env/v1"])
def test_a_component_that_the_configuration_denies_is_not_loaded(denied: str, files: Folders) -> None:
    files.write("a.yaml", component("s", "secretstores.local.env") + "---\n" + component("m"))

    resources = load_resources([str(files.first)], app_id=APP_ID, environ={}, denied=[denied])

    assert (list(resources.secret_stores), list(resources.components)) == ([], ["m"])
    told = "component 's' cannot be loaded because components of type 's (secretstores.local.env/v1)' are not allowed"
    assert told in texts(resources)[0]


# ── endpoints ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-107", "H-109", "C-59")
@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("  clientTLS: {renegotiation: Never}\n", ""),
        ("  clientTLS: {privateKey: {value: x}}\n", ""),
        ("  clientTLS: {renegotiation: Always}\n", "invalid renegotiation value Always for http endpoint ext"),
        ("  clientTLS: {rootCA: {value: nonsense}}\n", "failed to add root cert to cert pool for http endpoint ext"),
        ("  baseUrl: ''\n", "spec.baseUrl is missing"),
        ("  headers: [{name: 'a b', value: x}]\n", "invalid header field name 'a b'"),
        ('  headers: [{name: a, value: "x\\ny: z"}]\n', "invalid header field value for 'a'"),
        ("  headers: [{value: x}]\n", "invalid header field name ''"),
        ("  clientTLS: {rootCA: {secretKeyRef: {name: s}}}\n", "clientTLS.rootCA: the secret 's' could not be read"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_its_own_problem(more: str, problem: str, files: Folders) -> None:
    files.write("a.yaml", endpoint(more=more) + "---\n" + endpoint("other"))

    resources = files.load()

    assert resources.http_endpoints["other"].problem == ""
    assert resources.http_endpoints["ext"].problem.startswith(problem)
    assert bool(resources.http_endpoints["ext"].problem) == bool(problem)
    told = [text for text in texts(resources) if "HTTPEndpoint ext cannot be called" in text]
    assert len(told) == bool(problem)


def test_secrets_of_an_endpoint_are_not_in_its_repr(files: Folders) -> None:
    files.write(
        "a.yaml", endpoint(more="  headers: [{name: a, value: hush}]\n  clientTLS: {privateKey: {value: hush}}\n")
    )

    assert "hush" not in repr(files.load())


# ── references ─────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("C-62", "H-98")
@pytest.mark.parametrize(
    ("variable", "environ", "value"),
    [
        ("FOO", {"FOO": "foo"}, b"foo"),
        ("FOO", {}, None),
        ("FOO", {"FOO": "foo", "DAPR_ENV_KEYS": "BAR FOO"}, b"foo"),
        ("FOO", {"FOO": "foo", "DAPR_ENV_KEYS": "FOOBAR XFOO"}, None),
        ("APP_API_TOKEN", {"APP_API_TOKEN": "t"}, None),
        ("app_api_token", {"app_api_token": "t"}, None),
        ("DAPR_API_TOKEN", {"DAPR_API_TOKEN": "t"}, None),
        ("DAPR_X", {"DAPR_X": "t", "DAPR_ENV_KEYS": "DAPR_X"}, None),
        ("A B", {"A B": "x"}, None),
    ],
)
def test_variables_of_the_environment_may_be_referred_to(
    variable: str, environ: dict[str, str], value: bytes | None, files: Folders
) -> None:
    files.write("a.yaml", endpoint(more=f"  headers: [{{name: h, envRef: '{variable}'}}]\n"))

    resources = files.load(environ)

    assert resources.http_endpoints["ext"].headers == ((b"h", value or b""),)
    assert len(texts(resources)) == (value is None)
    assert resources.http_endpoints["ext"].problem == ""


@pytest.mark.rule("C-62", "H-97", "H-98")
def test_a_value_goes_before_a_variable_and_a_secret_before_both(files: Folders) -> None:
    secret = "secretKeyRef: {name: S}"
    files.write(
        "a.yaml",
        endpoint(
            more="  headers:\n  - {name: a, value: inline, envRef: E}\n"
            f"  - {{name: b, value: inline, envRef: E, {secret}}}\n"
            "  - {name: c, value: inline, secretKeyRef: {name: none}}\n"
            "auth: {secretStore: env}\n"
        ),
    )
    files.write("z.yaml", component("env", "secretstores.local.env"))

    resources = files.load({"S": "secret\n", "E": "variable"})

    assert dict(resources.http_endpoints["ext"].headers) == {b"a": b"inline", b"b": b"secret", b"c": b"inline"}
    (told,) = texts(resources, "error")
    assert "HTTPEndpoint ext: c: store env: the environment variable 'none' is not set (" in told
    assert told.endswith("a.yaml line 10)")


SECRETS = {"plain": "p", "nested": {"a": {"b": "deep"}, "list": ["x", 2]}, "number": 1.5, "yes": True, "nothing": None}


@pytest.mark.rule("C-63", "C-64", "H-97")
@pytest.mark.parametrize(
    ("options", "name", "key", "value"),
    [
        ({}, "plain", "", "p"),
        ({}, "nested:a:b", "", "deep"),
        ({}, "nested:list:1", "", "2"),
        ({}, "number", "", "1.5"),
        ({}, "yes", "", "true"),
        ({}, "nothing", "", ""),
        ({}, "nested", "a", None),
        ({}, "plain", "other", None),
        ({"nestedSeparator": "."}, "nested.a.b", "", "deep"),
        ({"multiValued": "true"}, "nested", "a:b", "deep"),
        ({"MULTIVALUED": "true", "NestedSeparator": "/"}, "nested", "list/0", "x"),
        ({"multiValued": "true"}, "plain", "", "p"),
    ],
)
def test_secrets_of_a_file_are_found_by_name_and_key(
    options: dict[str, str], name: str, key: str, value: str | None, files: Folders
) -> None:
    file = files.write("secrets.json", json.dumps(SECRETS), "elsewhere")
    metadata = json.dumps([{"name": key, "value": text} for key, text in {"secretsFile": str(file), **options}.items()])
    files.write("a.yaml", component("store", "secretstores.local.file", f"  metadata: {metadata}\n"))
    reference = json.dumps({"name": name, "key": key} if key else {"name": name})
    headers = f"  headers: [{{name: h, secretKeyRef: {reference}}}]\nauth: {{secretStore: store}}\n"
    files.write("b.yaml", endpoint(more=headers))

    resources = files.load()

    assert resources.http_endpoints["ext"].headers == ((b"h", (value or "").encode()),)
    assert len(texts(resources, "error")) == (value is None)
    assert resources.files == (str(file),)


def test_an_empty_secret_does_not_widen_trust(files: Folders) -> None:
    """Without the authority that was asked for, those of the system would count."""
    files.write("a.yaml", component("env", "secretstores.local.env"))
    tls = "  clientTLS: {rootCA: {secretKeyRef: {name: ROOT}}}\nauth: {secretStore: env}\n"
    files.write("b.yaml", endpoint(more=tls))

    resources = files.load({"ROOT": ""})

    assert resources.http_endpoints["ext"].problem == "clientTLS.rootCA: the secret 'ROOT' is empty"


@pytest.mark.rule("C-64")
def test_the_environment_as_a_store_has_a_prefix_and_keeps_tokens_to_itself(files: Folders) -> None:
    files.write("a.yaml", component("env", "secretstores.local.env", "  metadata: [{name: Prefix, value: DAPR_}]\n"))
    files.write("b.yaml", component("pre", "secretstores.local.env", "  metadata: [{name: prefix, value: P_}]\n"))
    for store in ("env", "pre"):
        headers = f"  headers: [{{name: h, secretKeyRef: {{name: X}}}}]\nauth: {{secretStore: {store}}}\n"
        files.write(f"e-{store}.yaml", endpoint(store, more=headers))

    resources = files.load({"DAPR_X": "token", "P_X": "found", "X": "other"})

    assert resources.http_endpoints["pre"].headers == ((b"h", b"found"),)
    assert resources.http_endpoints["env"].headers == ((b"h", b""),)
    assert "may not be read" in texts(resources, "error")[0]


@pytest.mark.rule("C-63", "H-97")
@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("none", "HTTPEndpoint ext references a secret store that isn't loaded: none"),
        ("''", "HTTPEndpoint ext: h: auth.secretStore names no store"),
        ("vault", "references a secret store that isn't loaded: vault"),
        ("file", "secret store file ("),
    ],
)
def test_a_store_that_is_not_there_is_told_and_the_header_is_empty(store: str, told: str, files: Folders) -> None:
    files.write("a.yaml", component("vault", "secretstores.hashicorp.vault"))
    files.write(
        "f.yaml", component("file", "secretstores.local.file", "  metadata: [{name: secretsFile, value: /no}]\n")
    )
    headers = f"  headers: [{{name: h, secretKeyRef: {{name: s}}}}]\nauth: {{secretStore: {store}}}\n"
    files.write("b.yaml", endpoint(more=headers))

    resources = files.load()

    assert resources.http_endpoints["ext"].headers == ((b"h", b""),)
    assert any(told in notice.text for notice in resources.notices)


@pytest.mark.parametrize("data", ["", "[]", "{", '{"a": ' * 2000 + "1" + "}" * 2000, None])
def test_a_file_of_secrets_that_cannot_be_used_is_told(data: str | None, files: Folders) -> None:
    file = files.path / "secrets.json"
    if data is not None:
        file.write_text(data, "utf-8")
    metadata = f"  metadata: [{{name: secretsFile, value: {file}}}]\n"
    files.write("a.yaml", component("store", "secretstores.local.file", metadata))

    (told,) = texts(files.load(), "error")

    assert told.startswith("secret store store (")
    assert "\n" not in told


# ── reading again ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("C-70", "C-72", "H-108")
def test_what_is_read_again_is_equal_if_it_says_the_same(files: Folders) -> None:
    """References and a Configuration among the files restart daprd at each look."""
    files.write("c.yaml", endpoint().replace("HTTPEndpoint", "Configuration"))
    files.write("a.yaml", endpoint(more="  headers: [{name: h, envRef: FOO}]\n"))
    first = files.load({"FOO": "foo"})
    files.write("a.yaml", "# moved\n" + endpoint(more="  headers: [{name: h, envRef: FOO}]\n"))

    again = files.load({"FOO": "foo"}, first)

    assert changed_resources(first, again) == ()
    assert new_notices(first, again) == ()
    assert again.seen != first.seen


@pytest.mark.rule("C-69", "H-108")
def test_what_breaks_while_running_keeps_its_last_good_definition(files: Folders) -> None:
    files.write("a.yaml", endpoint("a") + "---\n" + endpoint("b"))
    files.write("gone.yaml", endpoint("gone"))
    files.write("m.yaml", component("m"))
    first = files.load()
    files.write("a.yaml", endpoint("a", "http://127.0.0.1:2") + "---\n" + endpoint("b")[:-5] + ": x: y")
    files.write("m.yaml", "{")
    (files.first / "gone.yaml").unlink()

    again = files.load(previous=first)

    assert {name: found.base_url for name, found in again.http_endpoints.items()} == {
        "a": "http://127.0.0.1:2",
        "b": "http://127.0.0.1:1",
    }
    assert list(again.components) == ["m"]


@pytest.mark.rule("C-54", "C-69")
def test_a_double_that_appears_while_running_leaves_what_was_there(files: Folders) -> None:
    files.write("a.yaml", endpoint("a") + "---\n" + component("c"))
    first = files.load()
    files.write("b.yaml", endpoint("a", "http://127.0.0.1:2") + "---\n" + component("c") + "---\n" + endpoint("new"))

    again = files.load(previous=first)

    assert again.http_endpoints["a"].base_url == "http://127.0.0.1:1"
    assert list(again.http_endpoints) == ["a"]
    assert list(again.components) == ["c"]
    assert any("all stay as they were" in text for text in texts(again))
    assert any("duplicate definition of Component name c" in text for text in texts(again, "error"))


@pytest.mark.rule("H-108")
def test_a_problem_that_appears_while_running_leaves_the_endpoint_as_it_was(files: Folders) -> None:
    secrets = files.write("secrets.json", '{"s": "one"}', "elsewhere")
    metadata = f"  metadata: [{{name: secretsFile, value: {secrets}}}]\n"
    files.write("s.yaml", component("store", "secretstores.local.file", metadata))
    headers = "  headers: [{name: h, secretKeyRef: {name: s}}]\nauth: {secretStore: store}\n"
    files.write("a.yaml", endpoint(more=headers))
    first = files.load()
    secrets.write_text('{"s": "tw')

    half = files.load(previous=first)
    files.write("a.yaml", endpoint(url="''"))
    empty = files.load(previous=half)

    assert half.http_endpoints == first.http_endpoints == empty.http_endpoints
    assert half.seen != first.seen
    assert "its former secrets stay" in texts(half, "error")[0]
    assert "HTTPEndpoint ext keeps its former definition: spec.baseUrl is missing" in texts(empty)[0]


def test_a_start_without_folders_imports_nothing_of_all_this() -> None:
    code = (
        "import sys, tieline.sidecar;"
        "much = {'yaml', 'tieline.config.resources', 'tieline.config.secret_stores', 'tieline.config.checks'};"
        "sys.exit(f'imported: {much & set(sys.modules)}' if much & set(sys.modules) else 0)"
    )
    environ = {"PYTHONPATH": str(Path(folders.__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}

    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
