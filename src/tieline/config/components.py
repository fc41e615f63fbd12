"""The ``Component`` resource: middleware and secret stores matter here, other building blocks do not (C-57, C-58)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tieline.config import manifests
from tieline.config.manifests import Manifest
from tieline.config.references import References, Source, read_source

FAMILIES: Final = (
    "bindings",
    "configuration",
    "conversation",
    "crypto",
    "lock",
    "middleware",
    "nameresolution",
    "pubsub",
    "secretstores",
    "state",
    "workflow",
    "workflowbackend",
)
"""First words of the types that Dapr knows."""


class ComponentSpec(NamedTuple):
    """A component as written, before anything that it refers to is looked up.

    Attributes:
        version: ``v1`` if not given.
        init_timeout: As written; empty if not given.
        secret_store: Name of the store for its secrets; empty if not given.
    """

    name: str
    type: str
    version: str
    ignore_errors: bool
    init_timeout: str
    metadata: tuple[Source, ...]
    secret_store: str
    file: str
    line: int

    @property
    def title(self) -> str:
        return f"{self.name} ({self.type}/{self.version})"

    @property
    def is_of_known_family(self) -> bool:
        family, dot, _ = self.type.partition(".")
        return bool(dot) and family in FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A component with secrets and environment references put in. Equal wherever it was read from.

    Attributes:
        type: As written, such as ``middleware.http.ratelimit``.
        version: ``v1`` if not given.
        ignore_errors: It may fail to be made without ending the start.
        init_timeout: As written; empty if not given.
        metadata: Names as written, in order, and values; templates (C-61) not yet filled in.
        file: Where it was read from; ``line`` counts from 1.
    """

    name: str
    type: str
    version: str
    ignore_errors: bool = False
    init_timeout: str = ""
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    def values(self) -> Mapping[str, str]:
        """Return the metadata by name in lower case, since names are matched in any case."""
        return {name.lower(): value for name, value in self.metadata}


def read_component(manifest: Manifest) -> ComponentSpec:
    """Return what a manifest of this kind says.

    Raises:
        WrongType: A field is of a wrong type.
    """
    spec = manifests.field(manifest.root, "spec")
    metadata = manifests.items(spec, "metadata", "spec")
    return ComponentSpec(
        name=manifest.name,
        type=manifests.text(spec, "type", "spec"),
        version=manifests.text(spec, "version", "spec") or "v1",
        ignore_errors=manifests.switch(spec, "ignoreErrors", "spec"),
        init_timeout=manifests.text(spec, "initTimeout", "spec"),
        metadata=tuple(read_source(item, f"spec.metadata[{at}]") for at, item in enumerate(metadata)),
        secret_store=manifests.text(manifests.field(manifest.root, "auth"), "secretStore", "auth"),
        file=manifest.file,
        line=manifest.line,
    )


def make_component(spec: ComponentSpec, references: References) -> Component:
    """Put in what the component refers to; what is not there is empty."""
    return Component(
        name=spec.name,
        type=spec.type,
        version=spec.version,
        ignore_errors=spec.ignore_errors,
        init_timeout=spec.init_timeout,
        metadata=tuple((source.name, references.value(source) or "") for source in spec.metadata),
        file=spec.file,
        line=spec.line,
    )
