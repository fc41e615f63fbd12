"""Reads ``HTTPEndpoint`` resources, and puts in what they refer to (H-96 to H-98)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, cast, get_args

from tieline.config import manifests
from tieline.config.http_endpoint import HttpEndpoint, Renegotiation
from tieline.config.manifests import Manifest
from tieline.config.references import References, Source, read_source
from tieline.config.yaml_nodes import Node

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_AROUND: Final = " \t\r\n"
"""What files of secrets often end with, and what no header value may begin or end with."""
PEM_START: Final = "-----BEGIN "


class EndpointSpec(NamedTuple):
    """An endpoint as written, before anything that it refers to is looked up.

    Attributes:
        secret_store: Name of the store for its secrets; empty if not given.
        root_ca: ``None`` if not given, as ``certificate`` and ``private_key``.
        renegotiation: As written; empty if not given.
    """

    base_url: str
    headers: tuple[Source, ...]
    root_ca: Source | None
    certificate: Source | None
    private_key: Source | None
    renegotiation: str
    secret_store: str


def read_endpoint(manifest: Manifest) -> EndpointSpec:
    """Return what a manifest of this kind says.

    Raises:
        WrongType: A field is of a wrong type.
    """
    spec = manifests.field(manifest.root, "spec")
    tls = manifests.field(spec, "clientTLS", "spec")
    headers = manifests.items(spec, "headers", "spec")
    return EndpointSpec(
        base_url=manifests.text(spec, "baseUrl", "spec"),
        headers=tuple(read_source(header, f"spec.headers[{at}]") for at, header in enumerate(headers)),
        root_ca=_document(tls, "rootCA"),
        certificate=_document(tls, "certificate"),
        private_key=_document(tls, "privateKey"),
        renegotiation=manifests.text(tls, "renegotiation", "spec.clientTLS"),
        secret_store=manifests.text(manifests.field(manifest.root, "auth"), "secretStore", "auth"),
    )


def is_header_name(name: str) -> bool:
    """Say whether a header can have this name (RFC 9110 §5.6.2)."""
    return _TOKEN.fullmatch(name) is not None


def _document(tls: Node | None, name: str) -> Source | None:
    path = f"spec.clientTLS.{name}"
    found = manifests.field(tls, name, "spec.clientTLS")
    return None if found is None else read_source(found, path, name=f"clientTLS.{name}")


def make_endpoint(manifest: Manifest, spec: EndpointSpec, references: References) -> HttpEndpoint:
    """Put in what the endpoint refers to. What is wrong with it is its own problem, and nobody else's (H-107)."""
    problems: list[str] = []
    if not spec.base_url:
        problems.append("spec.baseUrl is missing")
    headers = _headers(spec.headers, references, problems)
    root_ca = _pem(spec.root_ca, references, problems)
    certificate = _pem(spec.certificate, references, problems)
    private_key = _pem(spec.private_key, references, problems)
    if root_ca is not None and PEM_START not in root_ca:
        problems.append(f"failed to add root cert to cert pool for http endpoint {manifest.name}: it is no PEM text")
    renegotiation = spec.renegotiation or "Never"
    if renegotiation not in get_args(Renegotiation):
        problems.append(f"invalid renegotiation value {renegotiation} for http endpoint {manifest.name}")
        renegotiation = "Never"
    return HttpEndpoint(
        name=manifest.name,
        base_url=spec.base_url,
        headers=headers,
        root_ca=root_ca,
        certificate=certificate,
        private_key=private_key,
        renegotiation=cast("Renegotiation", renegotiation),
        problem="; ".join(problems),
        file=manifest.file,
        line=manifest.line,
    )


def _headers(sources: Sequence[Source], references: References, problems: list[str]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers, the last of each name. One that would break a request is a problem."""
    found: dict[bytes, bytes] = {}
    for source in sources:
        value = (references.value(source) or "").strip(_AROUND)
        if not is_header_name(source.name):
            problems.append(f"invalid header field name {source.name!r}")
        elif _CONTROL.search(value):
            problems.append(f"invalid header field value for {source.name!r}")  # the value may be a secret
        else:
            found[source.name.lower().encode()] = value.encode("utf-8", "surrogateescape")
    return tuple(found.items())


def _pem(source: Source | None, references: References, problems: list[str]) -> str | None:
    """Return a document of TLS.

    One that was asked for and is not there is a problem: without it the call would trust others, or show no
    certificate, and that is not what the file says.
    """
    if source is None:
        return None
    value = references.value(source)
    if not value and source.secret:
        what = "could not be read" if value is None else "is empty"
        problems.append(f"{source.name}: the secret {source.secret!r} {what}")
    return value or None
