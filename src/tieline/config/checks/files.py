"""Checks files of resources and Configurations, each document by itself and all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tieline.config.checks.component import SCHEMA as COMPONENT
from tieline.config.checks.component import check_component
from tieline.config.checks.configuration import HandlerUse, check_configuration
from tieline.config.checks.endpoint import SCHEMA as ENDPOINT
from tieline.config.checks.endpoint import check_endpoint
from tieline.config.checks.findings import Finding, Findings, quoted
from tieline.config.checks.resiliency import SCHEMA as RESILIENCY
from tieline.config.checks.resiliency import check_resiliency
from tieline.config.checks.resource import StoreUse
from tieline.config.checks.shape import Shape, without
from tieline.config.configuration import MAX_FILE_BYTES as MAX_CONFIGURATION_BYTES
from tieline.config.configuration import Configuration
from tieline.config.decode import Schema, WrongType
from tieline.config.environment import expand_environment, vanishing_references
from tieline.config.manifests import API_VERSION, Broken, Budget, Manifest, bad_name, read_manifest, read_manifests
from tieline.config.manifests import field as field_of
from tieline.config.resources import KINDS, OTHER_KINDS
from tieline.config.spelling import closest
from tieline.config.yaml_nodes import Node, YamlProblem, read_documents, read_first_document

_SCHEMAS: Final[Mapping[str, Schema]] = {"Component": COMPONENT, "HTTPEndpoint": ENDPOINT, "Resiliency": RESILIENCY}


class Seen(NamedTuple):
    """A resource that was found, to compare others with."""

    manifest: Manifest
    type: str = ""
    version: str = ""


@dataclass(slots=True)
class _Wanted:
    """What one file refers to."""

    stores: list[StoreUse] = field(default_factory=list)
    handlers: list[HandlerUse] = field(default_factory=list)


class Checked(NamedTuple):
    """A Configuration that was found, for checks that need more than its file."""

    configuration: Configuration
    found: Findings


class Checker:
    """Checks one file after the other, and in the end what is between them.

    Args:
        environ: What ``$NAME`` in a Configuration stands for.

    Attributes:
        documents: How many were read.
        configurations: Those that were found.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._budget = Budget()
        self._files: list[Findings] = []
        self._seen: list[Seen] = []
        self._wanted: list[tuple[Findings, _Wanted]] = []
        self.documents = 0
        self.configurations: list[Checked] = []

    def file(self, name: str) -> Findings:
        """Return where to note what is found in a file."""
        found = Findings(name)
        self._files.append(found)
        return found

    def check(self, data: bytes, name: str, *, alone: bool) -> None:
        """Check what a file holds; ``alone``: it was named itself, so that it may be meant for ``--config``."""
        found = self.file(name)
        wanted = _Wanted()
        self._wanted.append((found, wanted))
        for manifest in read_manifests(data, name, self._budget):
            self.documents += 1
            if isinstance(manifest, Broken):
                self._broken(data, manifest, found, wanted)
            elif manifest.kind == "Configuration" or (alone and _looks_like_configuration(manifest)):
                self._configuration(data, manifest, found, wanted)
            else:
                self._resource(data, manifest, found, wanted)

    def findings(self) -> list[Finding]:
        """Check what is between the files, and return everything, by file and line."""
        self._doubles()
        for found, wanted in self._wanted:
            self._stores(found, wanted)
            self._handlers(found, wanted)
        return [finding for found in self._files for finding in sorted(found.all, key=lambda one: one.line)]

    # ── one document ───────────────────────────────────────────────────────────────────────────────
    def _configuration(self, data: bytes, manifest: Manifest, found: Findings, wanted: _Wanted) -> None:
        line = manifest.line
        if not manifest.kind:
            found.warn(line, "kind is missing: taken for a Configuration, as --config takes it", "kind: Configuration")
        elif manifest.api_version != API_VERSION:
            found.warn(line, f"apiVersion should be {API_VERSION}, not {manifest.api_version!r}")
        first = _first_document(data)
        if first is None or first.line != line:
            what = "is empty" if first is None or first.is_null else "is another"
            message = f"--config reads only the first document of a file, which {what}: this Configuration is not read"
            found.error(line, message, "put it first, or into a file of its own")
            document: Node | None = manifest.root
        else:
            document = self._expanded(data, found)
        if document is None:
            return
        configuration, handlers = check_configuration(document, found)
        wanted.handlers += handlers
        if configuration is not None:
            self.configurations.append(Checked(configuration, found))

    def _expanded(self, data: bytes, found: Findings) -> Node | None:
        """Return the first document as it is once the environment is put in; note what is lost by that."""
        text = data.decode("utf-8", "surrogateescape")
        for line, reference in vanishing_references(text, self._environ):
            message = f"{reference} is replaced by nothing: no such variable is set here"
            found.warn(line, message, "each $ of a Configuration refers to the environment; there is no escape")
        data = expand_environment(text, self._environ).encode("utf-8", "surrogateescape")
        if len(data) > MAX_CONFIGURATION_BYTES:
            found.error(0, f"a Configuration may have {MAX_CONFIGURATION_BYTES} bytes")
            return None
        try:
            return read_first_document(data)
        except YamlProblem as error:
            found.error(error.line or 0, error.text)
            return None

    def _broken(self, data: bytes, broken: Broken, found: Findings, wanted: _Wanted) -> None:
        """Note why a document cannot be read, and what else is wrong with it."""
        found.error(broken.line or 0, broken.text)
        if broken.root is None or broken.kind not in _SCHEMAS:
            return
        shape = Shape(found, any_case=True)
        shape.check(_SCHEMAS[broken.kind], broken.root)
        rest = read_manifest(without(broken.root, shape.wrong), (), found.file)
        if isinstance(rest, Manifest):
            self._resource(data, rest, found, wanted)

    def _resource(self, data: bytes, manifest: Manifest, found: Findings, wanted: _Wanted) -> None:
        if manifest.kind not in KINDS or manifest.api_version != API_VERSION:
            self._passed_over(manifest, found)
            return
        for repeat in manifest.repeats:
            found.warn(repeat.line, f"the key {repeat.key} already stands at line {repeat.first}; the last one counts")
        wrong = bad_name(manifest.name)
        if wrong:
            found.error(manifest.line, f"metadata.name {manifest.name!r} {wrong}")
        elif not manifest.name:
            found.error(manifest.line, "metadata.name is missing")
        shape = Shape(found, any_case=True)
        shape.check(_SCHEMAS[manifest.kind], manifest.root)
        rest = manifest._replace(root=without(manifest.root, shape.wrong))
        try:
            self._seen.append(self._read(data, rest, found, wanted))
        except WrongType as error:
            found.error(error.line, str(error))
            self._seen.append(Seen(manifest))

    def _read(self, data: bytes, manifest: Manifest, found: Findings, wanted: _Wanted) -> Seen:
        if manifest.kind == "HTTPEndpoint":
            wanted.stores += check_endpoint(manifest, found, self._environ)
        elif manifest.kind == "Component":
            spec, stores = check_component(manifest, found, self._environ)
            wanted.stores += stores
            return Seen(manifest, spec.type, spec.version)
        else:
            first = _first_document(data)
            if first is None or first.line != manifest.line:
                found.warn(manifest.line, "daprd reads a Resiliency only if it is the first document of its file")
            check_resiliency(manifest, found)
        return Seen(manifest)

    def _passed_over(self, manifest: Manifest, found: Findings) -> None:
        """Say that a document is not for us, and whether it looks as if it should be."""
        kind, line = manifest.kind, manifest.line
        ours = manifest.api_version.lower().startswith("dapr.io/")
        guess = kind if kind in KINDS else closest(kind, (*KINDS, *OTHER_KINDS))
        if not kind and not manifest.api_version:
            found.note(line, "no resource: apiVersion and kind are missing")
        elif kind in KINDS:
            message = f"this {kind} is not read: apiVersion must be {API_VERSION}, not {manifest.api_version!r}"
            (found.error if ours or not manifest.api_version else found.note)(line, message)
        elif kind in OTHER_KINDS:
            found.note(line, f"{kind} {manifest.name} is ignored: it is for another building block")
        elif ours and guess:
            found.error(line, f"this document is not read: there is no kind {kind!r}", quoted(guess))
        else:
            found.note(line, f"{kind or 'a document'} of {manifest.api_version or 'no apiVersion'} is ignored")

    # ── between documents ──────────────────────────────────────────────────────────────────────────
    def _doubles(self) -> None:
        found_in = {found.file: found for found in self._files}
        first: dict[tuple[str, str], list[Manifest]] = {}
        for manifest, _, _ in self._seen:
            if manifest.kind == "Resiliency":
                continue  # they are merged
            others = first.setdefault((manifest.kind, manifest.name), [])
            for other in others:
                if _may_meet(manifest, other):
                    message = f"there are two {manifest.kind}s named {manifest.name}: the other is in {other.place}"
                    found_in[manifest.file].error(manifest.line, message)
                    break
            others.append(manifest)

    def _stores(self, found: Findings, wanted: _Wanted) -> None:
        names = [seen.manifest.name for seen in self._seen if seen.type.startswith("secretstores.")]
        for use in wanted.stores:
            if use.store not in (*names, "kubernetes"):
                message = f"{use.what}: no secret store {use.store!r} is among these files"
                found.warn(use.line, message, quoted(closest(use.store, names)))

    def _handlers(self, found: Findings, wanted: _Wanted) -> None:
        """Look for components of pipelines, if there are any components: else their folder was not given."""
        components = {(seen.manifest.name, seen.type, seen.version) for seen in self._seen if seen.type}
        for use in wanted.handlers if components else ():
            if (use.name, use.type, use.version) not in components:
                message = f"no component {use.name} ({use.type}/{use.version}) is among these files"
                found.error(use.line, f"{message}: the step is left out", _near(use, components))


def _near(use: HandlerUse, components: set[tuple[str, str, str]]) -> str:
    for name, kind, version in sorted(components):
        if name == use.name:
            return f"there is {name} ({kind}/{version})"
    return quoted(closest(use.name, (name for name, _, _ in components)))


def _may_meet(one: Manifest, other: Manifest) -> bool:
    """Say whether one sidecar could read both."""
    if one.namespace and other.namespace and one.namespace != other.namespace:
        return False
    return not one.scopes or not other.scopes or bool(set(one.scopes) & set(other.scopes))


def _looks_like_configuration(manifest: Manifest) -> bool:
    return not manifest.kind and field_of(manifest.root, "spec") is not None


def _first_document(data: bytes) -> Node | None:
    """Return the first document, keys twice or not; ``None`` if there is none, or it cannot be read."""
    try:
        return next(read_documents(data, repeats=[]), None)
    except YamlProblem:
        return None
