"""The resolvers that come with Tieline, by the name a Configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tieline.names.mdns.resolver import mdns
from tieline.names.resolver import Factory
from tieline.names.sqlite import sqlite

RESOLVERS: Final[Mapping[str, Factory]] = MappingProxyType({"mdns": mdns, "sqlite": sqlite})
"""Makers by lower-case component name, for ``resolver.create``."""
