"""Secret stores that need no server: the environment and a file (C-64)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, Protocol, cast

from tieline.config.folders import Unreadable, read_bounded

MAX_LEVELS: Final = 100
"""Deepest nesting of a file of secrets."""
DEFAULT_SEPARATOR: Final = ":"

_TRUE_WORDS: Final = frozenset({"true", "t", "1", "yes", "y", "on"})


class SecretMissing(Exception):
    """There is no such secret, or it may not be read. The text says which and why."""


class StoreUnusable(Exception):
    """A store cannot be made from what its component says. The text says why."""


class SecretStore(Protocol):
    """Gives secrets by name and key."""

    def secret(self, name: str, key: str) -> str:
        """Return a secret.

        Raises:
            SecretMissing: See there.
        """
        ...


def refused_variable(name: str, environ: Mapping[str, str]) -> str:
    """Say why a variable may not be referred to (C-62); empty if it may."""
    upper = name.upper()
    if not name:
        return "it has no name"
    if upper == "APP_API_TOKEN" or upper.startswith("DAPR_") or " " in name:
        return "tokens and the sidecar's own variables are not given away"
    allowed = environ.get("DAPR_ENV_KEYS", "")
    if allowed and upper not in allowed.upper().split(" "):
        return "DAPR_ENV_KEYS does not name it"
    return ""


class EnvironmentSecrets:
    """``secretstores.local.env``: each variable is a secret whose only key is its own name."""

    def __init__(self, metadata: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._prefix = metadata.get("prefix", "")
        self._environ = environ

    def secret(self, name: str, key: str) -> str:
        """Return a variable; see ``SecretStore``."""
        variable = self._prefix + name
        refused = refused_variable(variable, self._environ)
        if refused:
            raise SecretMissing(f"the environment variable {variable!r} may not be read: {refused}")
        if key != name:
            raise SecretMissing(f"the secret {name!r} has no key {key!r}: a variable has its own name as its only key")
        value = self._environ.get(variable)
        if value is None:
            raise SecretMissing(f"the environment variable {variable!r} is not set")
        return value


class FileSecrets:
    """``secretstores.local.file``: a JSON file, read once.

    Values within values have names joined by a separator. With ``multiValued``, names of the top level are secrets
    and what is below are their keys; else every value is a secret whose only key is its own name.
    """

    def __init__(self, metadata: Mapping[str, str]) -> None:
        path = metadata.get("secretsfile", "")
        if not path:
            raise StoreUnusable("secretsFile is missing")
        self._path = path
        separator = metadata.get("nestedseparator", "") or DEFAULT_SEPARATOR
        data = _parse(path)
        if metadata.get("multivalued", "").lower() in _TRUE_WORDS:
            self._secrets = {name: _flat(value, name, separator) for name, value in data.items()}
        else:
            self._secrets = {
                joined: {joined: value}
                for name, below in data.items()
                for joined, value in _flat(below, name, separator, prefix=name).items()
            }

    def secret(self, name: str, key: str) -> str:
        """Return a value; see ``SecretStore``."""
        keys = self._secrets.get(name)
        if keys is None:
            raise SecretMissing(f"there is no secret {name!r} in {self._path}")
        if key not in keys:
            raise SecretMissing(f"the secret {name!r} in {self._path} has no key {key!r}")
        return keys[key]


def _parse(path: str) -> dict[str, object]:
    try:
        data: object = json.loads(read_bounded(path))
    except Unreadable as error:
        raise StoreUnusable(f"secretsFile {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        # The parser's text may not quote the file: it names a place only.
        raise StoreUnusable(f"secretsFile {path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise StoreUnusable(f"secretsFile {path} must hold a JSON object")
    return cast("dict[str, object]", data)


def _flat(value: object, name: str, separator: str, *, prefix: str = "") -> dict[str, str]:
    """Return the values below one, each with its joined name; a single value has the given name."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, object, int]] = [(prefix, value, 0)]
    while waiting:
        joined, item, level = waiting.pop()
        if level > MAX_LEVELS:
            raise StoreUnusable(f"secrets are nested deeper than {MAX_LEVELS} levels")
        below: list[tuple[str, object]]
        if isinstance(item, dict):
            below = list(cast("dict[str, object]", item).items())
        elif isinstance(item, list):
            below = [(str(at), one) for at, one in enumerate(cast("list[object]", item))]
        else:
            found[joined or name] = _scalar(item)
            continue
        waiting += [(f"{joined}{separator}{key}" if joined else key, one, level + 1) for key, one in below]
    return found


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def open_store(kind: str, metadata: Mapping[str, str], environ: Mapping[str, str]) -> SecretStore | None:
    """Return the store of a component; ``None`` if this version has no such kind.

    Args:
        metadata: Of the component, names in lower case.

    Raises:
        StoreUnusable: See there.
    """
    match kind:
        case "secretstores.local.env":
            return EnvironmentSecrets(metadata, environ)
        case "secretstores.local.file":
            return FileSecrets(metadata)
        case _:
            return None
