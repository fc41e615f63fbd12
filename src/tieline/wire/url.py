"""URLs of servers outside the mesh: what a base URL says, which URL a call goes to, where a redirect leads.

A base URL is read once; a call then only puts its method behind what stands there ready (H-99).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes, urljoin

from tieline.wire.errors_text import quote
from tieline.wire.method_path import bad_escape

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Compiled when a URL is read, since most sidecars read none.
_SCHEME: Final = r"([A-Za-z][A-Za-z0-9+.-]*):"
_PORT: Final = r":[0-9]{1,10}"
# RFC 3986 §3.2.2 names, and what resolvers take besides; nothing that could end a header or an authority.
_NAME: Final = r"[A-Za-z0-9_~!$&'()*+,;=.-]+"
_ADDRESS_V6: Final = r"[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?"
_MAX_NAME: Final = 253
_MAX_LABEL: Final = 63
# What a path or a query may hold as it is. The rest is percent-encoded; what is encoded already stays so.
_ENCODE: Final = rb"[^A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]-]"
_SLASH: Final = 0x2F


class BadUrl(ValueError):
    """A text is no URL that can be called; ``text`` says why, as Go's client would.

    Attributes:
        parsed: The text is a URL, but none that can be asked. Then Go names the verb in front of it.
    """

    def __init__(self, text: str, *, parsed: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.parsed = parsed


class Url(NamedTuple):
    """A URL in parts, ASCII throughout.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Lower case, an IPv6 address without brackets.
        port: Given or the scheme's own.
        authority: What ``Host`` says: host, and port if one was given.
        path: Percent-encoded path and query; empty, or begins with a slash.
        authorization: Value of ``authorization`` made of the user info; empty without one.
        shown: Everything in front of the path, without the password: for error texts.
    """

    scheme: str
    host: str
    port: int
    authority: bytes
    path: bytes
    authorization: bytes
    shown: str

    @property
    def server(self) -> tuple[str, str, int]:
        """Scheme, host and port: what connections are kept by."""
        return self.scheme, self.host, self.port

    @property
    def origin(self) -> str:
        """``scheme://host:port``, the port always there."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def target(self, encoded: bytes, query: bytes) -> bytes:
        """Return the request target of a call: path, ``/`` unless the method has one, method, query (H-99)."""
        target = self.path
        if encoded:
            target += encoded if encoded[0] == _SLASH else b"/" + encoded
        elif not target:
            target = b"/"
        return target + b"?" + query if query else target

    def join(self, target: bytes, location: bytes) -> Url:
        """Return where a ``Location`` leads that was the answer to ``target`` here; a fragment is dropped.

        Raises:
            BadUrl: Nowhere that can be called.
        """
        here = f"{self.scheme}://{self.authority.decode('ascii')}{target.decode('utf-8', 'surrogateescape')}"
        there = location.decode("utf-8", "surrogateescape")
        try:
            joined = urljoin(here, there)
        except ValueError as error:
            raise BadUrl(f"failed to parse Location header {quote(location)}: {error}", parsed=True) from error
        return parse_url(joined.partition("#")[0])


def parse_url(text: str) -> Url:
    """Read a URL that is called, or that methods are put behind; lone surrogates stand for bytes that are no UTF-8.

    Raises:
        BadUrl: Its scheme is another, it names no host, or it is malformed.
    """

    def refuse(reason: str) -> BadUrl:
        return BadUrl(f"parse {quote(text.encode('utf-8', 'surrogateescape'))}: {reason}")

    if any(char < " " or char == "\x7f" for char in text):
        raise refuse("net/url: invalid control character in URL")
    found = re.match(_SCHEME, text)
    scheme = found[1].lower() if found else ""
    if scheme not in DEFAULT_PORTS:
        raise BadUrl(f'unsupported protocol scheme "{scheme}"', parsed=True)
    assert found is not None
    rest = text[found.end() :]
    if "#" in rest:
        raise refuse("a fragment has no meaning here")
    if not rest.startswith("//"):
        raise BadUrl("http: no Host in request URL", parsed=True)
    end = min((at for at in (rest.find("/", 2), rest.find("?", 2)) if at >= 0), default=len(rest))
    user, at, place = rest[2:end].rpartition("@")
    path = rest[end:].encode("utf-8", "surrogateescape")
    if bad := bad_escape(path):
        raise refuse(f"invalid URL escape {quote(bad)}")
    path = re.sub(_ENCODE, lambda byte: b"%%%02X" % byte[0][0], path)
    host, port = _split_place(place, refuse)
    written = f"[{host}]" if ":" in host else host
    authority = f"{written}:{port}" if port else written
    return Url(
        scheme,
        host.lower(),
        port or DEFAULT_PORTS[scheme],
        authority.encode("ascii"),
        path if path[:1] in (b"/", b"") else b"/" + path,
        _basic(user) if at else b"",
        f"{scheme}://{_masked(user) + at}{authority}",
    )


_Refuse: TypeAlias = Callable[[str], BadUrl]


def _split_place(place: str, refuse: _Refuse) -> tuple[str, int]:
    """Return host and port, 0 if there is none."""
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        if not bracket:
            raise refuse("missing ']' in host")
        if ":" not in host or not re.fullmatch(_ADDRESS_V6, host):
            raise refuse(f'invalid host "[{host}]"')
        host = host.replace("%25", "%")
    else:
        host, colon, port = place.partition(":")
        port = colon + port
        host = _ascii_name(host, refuse)
    if not host:
        raise BadUrl("http: no Host in request URL", parsed=True)
    if port in ("", ":"):
        return host, 0
    if not re.fullmatch(_PORT, port) or int(port[1:]) not in range(1, 65536):
        raise refuse(f'invalid port "{port}" after host')
    return host, int(port[1:])


def _ascii_name(host: str, refuse: _Refuse) -> str:
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise refuse(f'invalid host "{host}"') from error
    host = unquote_to_bytes(host).decode("latin-1") if "%" in host else host
    if not host:
        return host
    bad = next((char for char in host if not re.fullmatch(_NAME, char)), None)
    if bad is not None:
        raise refuse(f"invalid character {quote(bad.encode('utf-8', 'surrogateescape'))} in host name")
    labels = host.removesuffix(".").split(".")
    if len(host) > _MAX_NAME or any(not 0 < len(label) <= _MAX_LABEL for label in labels):
        raise refuse(f'invalid host "{host}"')
    return host


def _basic(user: str) -> bytes:
    """Return what ``authorization`` says for user info."""
    name, _, password = user.encode("utf-8", "surrogateescape").partition(b":")
    return b"Basic " + b64encode(unquote_to_bytes(name) + b":" + unquote_to_bytes(password))


def _masked(user: str) -> str:
    """Return user info as it may be shown."""
    name, colon, _ = user.partition(":")
    return f"{name}:***" if colon else name
