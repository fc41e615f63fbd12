"""Checks of HTTPEndpoints (H-96)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, get_args

from tieline.config.checks.findings import Findings, quoted
from tieline.config.checks.resource import FREE, ITEMS, SECRET, TEXT, StoreUse, Uses, resource
from tieline.config.decode import Schema
from tieline.config.endpoint_file import PEM_START, EndpointSpec, is_header_name, read_endpoint
from tieline.config.http_endpoint import Renegotiation
from tieline.config.manifests import Manifest, field
from tieline.config.references import Source
from tieline.config.spelling import closest

_DOCUMENT: Final[Schema] = {"value": FREE, "secretKeyRef": SECRET}
SCHEMA: Final = resource(
    {
        "baseUrl": TEXT,
        "headers": ITEMS,
        "clientTLS": {
            "rootCA": _DOCUMENT,
            "certificate": _DOCUMENT,
            "privateKey": _DOCUMENT,
            "renegotiation": TEXT,
        },
    }
)
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<host>[^/?#]*)(?P<rest>.*)", re.DOTALL)


def check_endpoint(manifest: Manifest, found: Findings, environ: Mapping[str, str]) -> Sequence[StoreUse]:
    """Note what is wrong with an endpoint whose shape is right; return the secrets that it wants."""
    spec = read_endpoint(manifest)
    uses = Uses(found, spec.secret_store, environ)
    _check_url(manifest, spec, found)
    _check_headers(spec.headers, uses, found)
    _check_tls(manifest, spec, uses, found)
    return uses.stores


def _check_url(manifest: Manifest, spec: EndpointSpec, found: Findings) -> None:
    block = field(manifest.root, "spec")
    node = None if block is None else field(block, "baseUrl")
    if not spec.base_url or node is None:
        line = manifest.line if block is None else block.line
        found.error(line if node is None else node.line, "spec.baseUrl is missing", "give http://… or https://…")
        return
    match = _URL.fullmatch(spec.base_url)
    if match is None:
        found.error(node.line, "spec.baseUrl must begin with http:// or https://", quoted(f"http://{spec.base_url}"))
        return
    scheme, host, rest = match["scheme"].lower(), match["host"].rpartition("@")[2], match["rest"]
    if scheme not in ("http", "https"):
        found.error(node.line, f"spec.baseUrl must begin with http:// or https://, not {scheme}://")
    if not host or host.startswith(":"):
        found.error(node.line, "spec.baseUrl names no host")
    if re.search(r"[\s\x00-\x1f\x7f]", spec.base_url):
        found.error(node.line, "spec.baseUrl has a blank or a control character in it")
    if "?" in rest or "#" in rest:
        found.error(node.line, "spec.baseUrl has a query or a fragment: methods would be added behind it")
    elif rest.endswith("/"):
        hint = "leave out the last slash"
        found.warn(node.line, f"spec.baseUrl ends with a slash: method x is called at {rest}/x", hint)
    if scheme == "http" and spec.root_ca is not None:
        found.warn(node.line, "spec.clientTLS has no effect, since spec.baseUrl begins with http://")


def _check_headers(headers: Sequence[Source], uses: Uses, found: Findings) -> None:
    seen: set[str] = set()
    for at, header in enumerate(headers):
        what = f"spec.headers[{at}]"
        if not header.name:
            found.error(header.line, f"{what} has no name")
        elif not is_header_name(header.name):
            found.error(header.line, f"{what}: {header.name!r} cannot be the name of a header")
        elif header.name.lower() in seen:
            found.warn(header.line, f"{what}: {header.name} stands there already; the last one counts")
        seen.add(header.name.lower())
        uses.check(header, what)


def _check_tls(manifest: Manifest, spec: EndpointSpec, uses: Uses, found: Findings) -> None:
    for source in (spec.root_ca, spec.certificate, spec.private_key):
        if source is None:
            continue
        what = f"spec.{source.name}"
        uses.check(source, what)
        if not source.secret and source.value is not None and PEM_START not in source.value:
            found.error(source.line, f"{what} is no PEM text", "it begins with -----BEGIN")
    pair = [source for source in (spec.certificate, spec.private_key) if source is not None]
    if len(pair) == 1:
        other = "privateKey" if spec.private_key is None else "certificate"
        found.warn(pair[0].line, f"spec.{pair[0].name} has no effect without spec.clientTLS.{other}")
    words = get_args(Renegotiation)
    if spec.renegotiation and spec.renegotiation not in words:
        node = field(field(field(manifest.root, "spec"), "clientTLS"), "renegotiation")
        message = f"spec.clientTLS.renegotiation must be one of {', '.join(words)}, not {spec.renegotiation}"
        line = manifest.line if node is None else node.line
        found.error(line, message, quoted(closest(spec.renegotiation, words)))
