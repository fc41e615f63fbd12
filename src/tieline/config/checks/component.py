"""Checks of Components, as far as their type is known here (C-58)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tieline.config.checks.findings import Findings, quoted
from tieline.config.checks.resource import ITEMS, TEXT, StoreUse, Uses, resource
from tieline.config.components import FAMILIES, ComponentSpec, read_component
from tieline.config.decode import Scalar
from tieline.config.manifests import Manifest, field
from tieline.config.secret_stores import StoreUnusable, open_store
from tieline.config.spelling import closest

SCHEMA: Final = resource(
    {
        "type": TEXT,
        "version": TEXT,
        "ignoreErrors": Scalar.SWITCH,
        "initTimeout": Scalar.DURATION,
        "metadata": ITEMS,
    }
)
MIDDLEWARE: Final = tuple(
    f"middleware.http.{name}"
    for name in (
        "bearer",
        "oauth2",
        "oauth2clientcredentials",
        "opa",
        "ratelimit",
        "routeralias",
        "routerchecker",
        "sentinel",
        "uppercase",
        "wasm",
    )
)
STORES: Final = ("secretstores.local.env", "secretstores.local.file")
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "secretstores.local.file": ("secretsFile",),
    "middleware.http.bearer": ("issuer", "audience"),
    "middleware.http.oauth2clientcredentials": ("clientID", "clientSecret", "scopes", "tokenURL", "headerName"),
    "middleware.http.opa": ("rego",),
    "middleware.http.wasm": ("url",),
}
ALIASES: Final[Mapping[str, tuple[str, ...]]] = {"issuer": ("issuerurl",), "audience": ("clientid",)}


def check_component(
    manifest: Manifest, found: Findings, environ: Mapping[str, str]
) -> tuple[ComponentSpec, Sequence[StoreUse]]:
    """Note what is wrong with a component whose shape is right; return it, and the secrets that it wants."""
    spec = read_component(manifest)
    uses = Uses(found, spec.secret_store, environ)
    _check_type(manifest, spec, found)
    for at, item in enumerate(spec.metadata):
        if not item.name:
            found.error(item.line, f"spec.metadata[{at}] has no name")
        if not spec.type.startswith("middleware.http.routeralias"):
            uses.check(item, f"spec.metadata[{at}]")
    if spec.type.startswith("secretstores."):
        _check_store(manifest, spec, found, environ)
    given = {item.name.lower() for item in spec.metadata}
    for name in REQUIRED.get(spec.type, ()):
        if not given.intersection({name.lower(), *ALIASES.get(name, ())}):
            found.error(spec.line, f"{spec.type} needs {name} in spec.metadata")
    return spec, uses.stores


def _check_store(manifest: Manifest, spec: ComponentSpec, found: Findings, environ: Mapping[str, str]) -> None:
    """Note what keeps a secret store from giving secrets here."""
    if spec.type not in STORES:
        guess = closest(spec.type.partition(".")[2], (store.partition(".")[2] for store in STORES))
        message = f"this version has no {spec.type}: secrets from it will be missing"
        (found.error if guess else found.warn)(
            _type_line(manifest),
            message,
            quoted(f"secretstores.{guess}") if guess else f"there are {' and '.join(STORES)}",
        )
        return
    values = {item.name.lower(): item for item in spec.metadata}
    file = values.get("secretsfile")
    if file is None or not file.value or file.secret:
        return
    try:
        open_store(spec.type, {name: item.value or "" for name, item in values.items()}, environ)
    except StoreUnusable as error:
        if Path(file.value).is_file():
            found.error(file.line, str(error))
        else:
            found.warn(file.line, str(error), "a relative path counts from the folder in which the sidecar starts")


def _type_line(manifest: Manifest) -> int:
    block = field(manifest.root, "spec")
    node = None if block is None else field(block, "type")
    return manifest.line if block is None else block.line if node is None else node.line


def _check_type(manifest: Manifest, spec: ComponentSpec, found: Findings) -> None:
    line = _type_line(manifest)
    if not spec.type:
        found.error(line, "spec.type is missing")
    elif not spec.is_of_known_family:
        family, dot, rest = spec.type.partition(".")
        guess = closest(family, FAMILIES)
        hint = quoted(f"{guess}.{rest}") if guess and dot else "it has the form family.name, such as state.redis"
        found.error(line, f"spec.type {spec.type} is of no known family", hint)
    elif spec.type.startswith("middleware.") and spec.type not in MIDDLEWARE:
        found.error(line, f"there is no middleware {spec.type}", quoted(closest(spec.type, MIDDLEWARE)))
