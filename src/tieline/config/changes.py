"""What differs between two readings of the same files: one line for each change, for the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from tieline.config.configuration import Configuration
from tieline.config.resource_set import Notice, Resources

Resource = TypeVar("Resource", bound=object)


class _Section(Protocol):
    def __call__(self, configuration: Configuration, /) -> object: ...


# Places of blocks are no part of what they say.
_SECTIONS: Mapping[str, _Section] = {
    "spec.tracing": lambda c: c.tracing,
    "spec.features": lambda c: c.enabled_features(),
    "spec.nameResolution": lambda c: c.name_resolution and c.name_resolution[:3],
    "spec.logging.apiLogging": lambda c: c.api_logging,
    "spec.metric": lambda c: c.metric,
    "spec.accessControl": lambda c: c.access_control,
    "spec.api": lambda c: c.api,
    "spec.components": lambda c: c.denied_components,
    "spec.httpPipeline": lambda c: c.http_pipeline,
    "spec.appHttpPipeline": lambda c: c.app_http_pipeline,
}


def changed_sections(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Return the dotted names of the blocks that say something else."""
    return tuple(name for name, section in _SECTIONS.items() if section(old) != section(new))


def changed_resources(old: Resources, new: Resources) -> tuple[str, ...]:
    """Return a line for each resource that was added, updated or removed."""
    return (
        *_lines("HTTPEndpoint", old.http_endpoints, new.http_endpoints),
        *_lines("Component", old.components, new.components),
    )


def new_notices(old: Resources, new: Resources) -> tuple[Notice, ...]:
    """Return what has not been said before."""
    said = set(old.notices)
    return tuple(notice for notice in new.notices if notice not in said)


def _lines(kind: str, old: Mapping[str, Resource], new: Mapping[str, Resource]) -> Iterator[str]:
    for name, resource in new.items():
        if name not in old:
            yield f"{kind} added: {name}"
        elif resource != old[name]:
            yield f"{kind} updated: {name}"
    for name in old:
        if name not in new:
            yield f"{kind} removed: {name}"
