"""What the folders of resource files held when they were last read. Apart from the reading, which few starts need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tieline.config.folders import Print, fingerprint_in_parts

if TYPE_CHECKING:
    from tieline.config.components import Component
    from tieline.config.http_endpoint import HttpEndpoint
    from tieline.config.secret_stores import SecretStore


class Notice(NamedTuple):
    """Something to log.

    Attributes:
        level: ``info``, ``warning`` or ``error``.
    """

    level: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resources:
    """What the folders hold for this app.

    Attributes:
        http_endpoints: By name, in the order of reading.
        components: Those whose types this version could use, by name: middleware.
        secret_stores: By name, as they were read.
        notices: What could not be read or used, in the order of reading.
        seen: What the folders and files looked like, to notice a change by.
        folders: Those that were read, each once.
        files: Files outside the folders that were read: secrets.
    """

    http_endpoints: Mapping[str, HttpEndpoint] = field(default_factory=dict)
    components: Mapping[str, Component] = field(default_factory=dict)
    secret_stores: Mapping[str, SecretStore] = field(default_factory=dict, repr=False)
    notices: tuple[Notice, ...] = ()
    seen: Mapping[str, Print | None] = field(default_factory=dict, repr=False)
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def look(self) -> Iterator[dict[str, Print | None]]:
        """Return what would now be ``seen``, part by part."""
        return fingerprint_in_parts(self.folders, self.files)
