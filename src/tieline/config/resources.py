"""Reads the folders of resource files (``--resources-path``) into frozen data, and says what it could not use.

Nothing here is logged: what there is to say comes back as ``Notice``s, since the same files are read by commands
that show it otherwise, and read again whenever they change, when only what is new is worth a line.

At the start a mistake that ends ``daprd`` ends us as well, with all of them told at once. Later none does: given what
was read before, whatever is broken now keeps its last good definition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tieline.config.components import Component, ComponentSpec, make_component, read_component
from tieline.config.decode import WrongType
from tieline.config.endpoint_file import EndpointSpec, make_endpoint, read_endpoint
from tieline.config.fatal import FatalOption, one_line
from tieline.config.folders import (
    MAX_FILES,
    Unreadable,
    fingerprint,
    list_folder,
    read_bounded,
)
from tieline.config.http_endpoint import HttpEndpoint
from tieline.config.manifests import API_VERSION, Broken, Budget, Manifest, bad_name, read_manifests
from tieline.config.references import References
from tieline.config.resource_set import Notice, Resources
from tieline.config.secret_stores import SecretStore, StoreUnusable, open_store

KINDS: Final = ("Component", "Configuration", "HTTPEndpoint", "Resiliency")
"""Kinds that mean something here."""
OTHER_KINDS: Final = ("Subscription", "MCPServer", "WorkflowAccessPolicy")
"""Kinds of Dapr that concern other building blocks."""


def load_resources(
    folders: Sequence[str],
    *,
    app_id: str,
    environ: Mapping[str, str],
    denied: Sequence[str] = (),
    watch: bool = True,
    previous: Resources | None = None,
    wrong_url: Callable[[str], str] = lambda url: "",
) -> Resources:
    """Read all files of the folders, in the order of folders and names (C-50).

    Args:
        environ: Has the values of ``envRef``, and ``NAMESPACE`` (C-53).
        denied: Types of components, or ``type/version``, that are not to be loaded.
        watch: Whether the folders are to be watched; only the words for a missing one depend on it (C-52).
        previous: What was read before, if this is not the start.
        wrong_url: Says why a base URL cannot be called; empty if it can.

    Raises:
        FatalOption: A folder is missing; at the start, also two components have one name, or one is of no family.
    """
    folders = _each_once(folders)
    if not folders:
        return Resources()
    # Before reading: what changes meanwhile will then look changed.
    seen = fingerprint(folders)
    loader = _Loader(app_id, environ, denied, previous, wrong_url)
    for folder in folders:
        loader.read_folder(folder, watch=watch)
    loader.read_secret_stores()
    endpoints = loader.http_endpoints()
    components = loader.components()
    loader.check()
    return Resources(
        http_endpoints=endpoints,
        components=components,
        secret_stores=loader.stores,
        notices=tuple(loader.notices),
        seen=seen | fingerprint((), loader.files),
        folders=tuple(folders),
        files=tuple(loader.files),
    )


def _each_once(folders: Sequence[str]) -> list[str]:
    """Return the folders without repetitions: given twice, every resource in one would have a double."""
    found: dict[str, str] = {}
    for folder in folders:
        found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


class _Loader:
    """Gathers what the files say, and then puts it together."""

    def __init__(
        self,
        app_id: str,
        environ: Mapping[str, str],
        denied: Sequence[str],
        previous: Resources | None,
        wrong_url: Callable[[str], str],
    ) -> None:
        self._app_id = app_id
        self._environ = environ
        self._denied = denied
        self._previous = previous
        self._wrong_url = wrong_url
        self._namespace = environ.get("NAMESPACE", "")
        self._endpoints: list[tuple[Manifest, EndpointSpec]] = []
        self._components: list[ComponentSpec] = []
        self.stores: dict[str, SecretStore] = {}
        self._budget = Budget()
        self._broken_files: set[str] = set()
        self._fatal: list[str] = []
        self._without_effect: list[str] = []
        self.files: list[str] = []
        self.notices: list[Notice] = []

    def tell(self, level: str, text: str) -> None:
        """Note something to log, once."""
        notice = Notice(level, one_line(text))
        if notice not in self.notices:
            self.notices.append(notice)

    # ── reading ────────────────────────────────────────────────────────────────────────────────────
    def read_folder(self, folder: str, *, watch: bool) -> None:
        try:
            listing = list_folder(folder)
        except (OSError, ValueError) as error:
            raise _no_folder(folder, error, watch=watch) from error
        for name in listing.others:
            self.tell("warning", f"A non-YAML resource file {name} was detected, it will not be loaded")
        if listing.left_out:
            text = f"{folder} has more than {MAX_FILES} files; the last {listing.left_out} are not read"
            self.tell("warning", text)
        for name in listing.files:
            self._read_file(os.path.join(folder, name))  # noqa: PTH118 - as the user wrote the folder

    def _read_file(self, path: str) -> None:
        try:
            data = read_bounded(path)
        except Unreadable as error:
            self._broken_files.add(path)
            self.tell("warning", f"resource file {path} cannot be read: {error}")
            return
        for manifest in read_manifests(data, path, self._budget):
            if isinstance(manifest, Broken):
                self._broken(manifest)
            else:
                self._read_manifest(manifest)

    def _broken(self, broken: Broken) -> None:
        self._broken_files.add(broken.file)
        line = "" if broken.line is None else f" line {broken.line}"
        kind = f"{broken.kind} " if broken.kind else ""
        self.tell(
            "warning",
            f"load {kind}error when parsing manifests yaml resource in {broken.file}{line}: {broken.text}; "
            "this document is not used",
        )

    def _read_manifest(self, manifest: Manifest) -> None:
        kind = manifest.kind
        if kind not in KINDS or manifest.api_version != API_VERSION:
            self._unknown(manifest)
            return
        for repeat in manifest.repeats:
            text = f"{manifest.file} line {repeat.line}: the key {repeat.key!r} already stands at line {repeat.first}"
            self.tell("warning", f"{text}; the last one counts")
        wrong = bad_name(manifest.name)
        if wrong:
            self._broken(Broken(kind, manifest.file, manifest.line, f'invalid name "{manifest.name}": {wrong}'))
        elif self._is_for_us(manifest):
            try:
                self._take(manifest)
            except WrongType as error:
                self._broken(Broken(kind, manifest.file, error.line, str(error)))

    def _is_for_us(self, manifest: Manifest) -> bool:
        if self._namespace and manifest.namespace and manifest.namespace != self._namespace:
            return False
        return not manifest.scopes or self._app_id in manifest.scopes

    def _take(self, manifest: Manifest) -> None:
        match manifest.kind:
            case "HTTPEndpoint":
                self._endpoints.append((manifest, read_endpoint(manifest)))
            case "Component":
                self._take_component(read_component(manifest))
            case "Configuration":
                text = f"Configuration {manifest.name} ({manifest.place}) is not applied: give its file to --config"
                self.tell("warning", text)
            case _:
                self._without_effect.append(f"{manifest.kind} {manifest.name} ({manifest.place})")

    def _take_component(self, spec: ComponentSpec) -> None:
        if spec.type in self._denied or f"{spec.type}/{spec.version}" in self._denied:
            what = f"component '{spec.name}' cannot be loaded because components of type '{spec.title}' are not allowed"
            self.tell("warning", f"{what} ({spec.file} line {spec.line})")
        else:
            self._components.append(spec)

    def _unknown(self, manifest: Manifest) -> None:
        """Tell of a document that looks as if it was meant for us; others are passed over (C-51)."""
        kind = {known.lower(): known for known in KINDS}.get(manifest.kind.lower())
        if kind is None or not manifest.api_version.lower().startswith("dapr.io/"):
            return
        wrong = [
            f"{key} must be {right}, not {found}"
            for key, right, found in (("kind", kind, manifest.kind), ("apiVersion", API_VERSION, manifest.api_version))
            if right != found
        ]
        self.tell("warning", f"{manifest.place}: this document is not read: {' and '.join(wrong)}")

    # ── putting together ───────────────────────────────────────────────────────────────────────────
    def read_secret_stores(self) -> None:
        """Open the stores; they come first, since all others may need them (C-64)."""
        before = {} if self._previous is None else self._previous.secret_stores
        for spec in self._components:
            if not spec.type.startswith("secretstores."):
                continue
            component = make_component(spec, self._references(f"Component {spec.name}", spec.secret_store, spec.file))
            file = component.values().get("secretsfile")
            if file:
                self.files.append(os.path.abspath(file))  # noqa: PTH100 - a NUL in it is for the store to refuse
            try:
                store = open_store(spec.type, component.values(), self._environ)
            except StoreUnusable as error:
                store = before.get(spec.name)
                text = f"secret store {spec.name} ({spec.file} line {spec.line}) cannot be used: {error}"
                self.tell("error", text if store is None else f"{text}; its former secrets stay")
            if store is not None:
                self.stores[spec.name] = store
        if self._broken_files:  # the component of a store may be in one of them
            self.stores = {**before, **self.stores}

    def http_endpoints(self) -> dict[str, HttpEndpoint]:
        """Return the endpoints. If two have one name, none is loaded, and later all stay as they were (C-54)."""
        before = {} if self._previous is None else self._previous.http_endpoints
        found: dict[str, HttpEndpoint] = {}
        has_doubles = False
        for manifest, spec in self._endpoints:
            references = self._references(f"HTTPEndpoint {manifest.name}", spec.secret_store, manifest.file)
            endpoint = make_endpoint(manifest, spec, references)
            first = found.setdefault(manifest.name, endpoint)
            if first is endpoint:
                continue
            has_doubles = True
            self.tell(
                "warning",
                f"failed to load HTTP endpoints: duplicate definition of HTTPEndpoint name {endpoint.name} "
                f"({endpoint.base_url}) with existing {first.name} ({first.base_url}): "
                f"{manifest.place} and {first.file} line {first.line}; "
                + ("none is loaded" if self._previous is None else "all stay as they were"),
            )
        if has_doubles:
            return dict(before)
        for name, old in before.items():
            if name not in found and old.file in self._broken_files:
                found[name] = old
        return {name: self._usable(endpoint, before.get(name)) for name, endpoint in found.items()}

    def _usable(self, endpoint: HttpEndpoint, old: HttpEndpoint | None) -> HttpEndpoint:
        """Tell of a problem, and return the endpoint; the old one if that had none."""
        wrong = self._wrong_with(endpoint)
        if not wrong:
            return endpoint
        used = endpoint if old is None or self._wrong_with(old) else old
        what = "cannot be called" if used is endpoint else "keeps its former definition"
        place = f"{endpoint.file} line {endpoint.line}"
        self.tell("warning", f"HTTPEndpoint {endpoint.name} {what}: {wrong} ({place})")
        return used

    def _wrong_with(self, endpoint: HttpEndpoint) -> str:
        return endpoint.problem or self._wrong_url(endpoint.base_url)

    def components(self) -> dict[str, Component]:
        """Return the components that this version could use; name those that it cannot."""
        before = {} if self._previous is None else self._previous.components
        accepted: dict[str, ComponentSpec] = {}
        doubles: set[str] = set()
        unused: list[str] = []
        for spec in self._components:
            first = accepted.setdefault(spec.name, spec)
            if first is not spec:
                doubles.add(spec.name)
                text = f"duplicate definition of Component name {spec.title} with existing {first.title}"
                self._fail(f"{text}: {spec.file} line {spec.line} and {first.file} line {first.line}")
            elif not spec.is_of_known_family:
                text = f"process component {spec.name} error: incorrect type {spec.type}"
                self._fail(f"{text} ({spec.file} line {spec.line})", ignore=spec.ignore_errors)
            elif spec.name not in self.stores:
                unused.append(spec.title)
        if unused:
            self.tell("info", f"components that this version of Tieline makes no use of: {', '.join(unused)}")
        found = {
            name: make_component(spec, self._references(f"Component {name}", spec.secret_store, spec.file))
            for name, spec in accepted.items()
            if spec.type.startswith("middleware.") and name not in doubles
        }
        kept = {
            name: old
            for name, old in before.items()
            if name in doubles or (name not in accepted and old.file in self._broken_files)
        }
        return found | kept

    def _fail(self, text: str, *, ignore: bool = False) -> None:
        if ignore:
            self.tell("error", f"Ignoring error processing component: {text}")
        elif self._previous is not None:
            self.tell("error", text)
        else:
            self._fatal.append(text)

    def check(self) -> None:
        """Name kinds without effect; refuse the start if something ends it."""
        if self._without_effect:
            text = ", ".join(self._without_effect)
            self.tell("warning", f"given, but of no effect in this version of Tieline: {text}")
        if self._fatal:
            self._fatal.sort(key=lambda text: not text.startswith("duplicate"))
            # Doubles are found first, as all files are read before any component is made.
            before = "failed to load components: " if self._fatal[0].startswith("duplicate") else ""
            raise FatalOption(before + "; ".join(self._fatal))

    def _references(self, owner: str, store: str, file: str) -> References:
        def tell(level: str, text: str, line: int) -> None:
            self.tell(level, f"{text} ({file} line {line})")

        return References(owner, store, self.stores, self._environ, tell)


def _no_folder(folder: str, error: Exception, *, watch: bool) -> FatalOption:
    if isinstance(error, NotADirectoryError):
        return FatalOption(f"failed to load components: open {folder}: not a directory; give the folder that holds it")
    advice = "make the folder, or leave out --resources-path"
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and error.errno:
        reason = os.strerror(error.errno).lower()
        return FatalOption(f"failed to load components: open {folder}: {reason}; let this user read it")
    if watch:
        text = f"failed to create watcher: failed to add target {folder}: no such file or directory"
        return FatalOption(f"{text}; {advice}")
    return FatalOption(f"failed to load components: open {folder}: no such file or directory; {advice}")
