"""The ``HTTPEndpoint`` resource: a target outside the mesh that has a name (H-96)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Renegotiation: TypeAlias = Literal["Never", "OnceAsClient", "FreelyAsClient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpEndpoint:
    """One endpoint as its file says, with secrets and environment references put in.

    Equal if calls to it would be the same, wherever it was read from.

    Attributes:
        name: What callers address; case-sensitive.
        base_url: As written: it may have a path, and is not known to be a URL at all until it is used.
        headers: Set on each request after the caller's, lower-case names, each once (H-100).
        root_ca: PEM text that replaces the system's trust store; ``None`` if not given.
        certificate: PEM text; used with ``private_key`` only when both are there.
        problem: Why calls to it must fail, known from the file alone; empty if nothing is wrong.
        file: Where it was read from; ``line`` counts from 1.
    """

    name: str
    base_url: str
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    root_ca: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    renegotiation: Renegotiation = "Never"
    problem: str = ""
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
