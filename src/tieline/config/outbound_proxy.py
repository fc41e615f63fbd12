"""Which proxy a request to the outside takes: ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` (http.md §1.3).

Read as Go's client reads them, since that is what people's environments were written for: upper case counts before
lower case, a host of this machine is never asked through a proxy, and there is no ``ALL_PROXY``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

PROXY_PORT: Final = 80
"""Of a proxy whose URL names none."""


class Proxy(NamedTuple):
    """A proxy to ask.

    Attributes:
        host: Name or address, an IPv6 one without brackets.
        authorization: Value of ``proxy-authorization``; empty if the URL has no user info.
        problem: Why it cannot be used; empty if it can.
    """

    host: str
    port: int
    authorization: bytes = b""
    problem: str = ""


class _Exception(NamedTuple):
    """An item of ``NO_PROXY``. What is ``None`` does not matter.

    Attributes:
        name: Domain with a leading dot: of its subdomains, and with ``itself`` of the domain too.
        port: Of the target; empty for any.
    """

    name: str = ""
    itself: bool = False
    address: _Address | None = None
    network: _Network | None = None
    port: str = ""

    def holds(self, host: str, address: _Address | None, port: int) -> bool:
        if self.network is not None:
            return address is not None and address in self.network
        if self.port and self.port != str(port):
            return False
        if self.address is not None:
            return address == self.address
        return f".{host}".endswith(self.name) if self.itself else host.endswith(self.name)


class ProxyRules:
    """What the environment says about proxies."""

    def __init__(self, http: Proxy | None, https: Proxy | None, no_proxy: str) -> None:
        self._proxies = {"http": http, "https": https}
        self._everything = False
        self._exceptions: list[_Exception] = []
        for item in no_proxy.split(","):
            self._except(item.strip().lower())

    def _except(self, item: str) -> None:
        if item == "*":
            self._everything = True
        elif item:
            self._exceptions += _exceptions(item)

    def choose(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy for a server, ``None`` for the straight way.

        Args:
            scheme: ``http`` or ``https``.
            host: An IPv6 address without brackets.
            port: Of the server.
        """
        proxy = self._proxies[scheme]
        if proxy is None or self._everything:
            return None
        host = host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return None
        return None if any(item.holds(host, address, port) for item in self._exceptions) else proxy


def read_proxies(environ: Mapping[str, str]) -> ProxyRules | None:
    """Return what the environment says, ``None`` if it names no proxy. A bad one is a problem of its calls only."""
    http, https = _parse("HTTP_PROXY", environ), _parse("HTTPS_PROXY", environ)
    return ProxyRules(http, https, _value("NO_PROXY", environ)) if http or https else None


def _value(name: str, environ: Mapping[str, str]) -> str:
    return environ.get(name) or environ.get(name.lower()) or ""


def _parse(name: str, environ: Mapping[str, str]) -> Proxy | None:
    text = _value(name, environ).strip()
    if not text:
        return None
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        host, port = url.hostname or "", url.port or PROXY_PORT
    except ValueError:
        return Proxy("", 0, problem=f"{name} is no address of a proxy")
    if not host or not host.isascii() or any(char <= " " for char in host):
        return Proxy("", 0, problem=f"{name} is no address of a proxy")
    if url.scheme != "http":
        return Proxy(host, port, problem=f"{name} asks for a proxy of the kind {url.scheme}; only http:// is built")
    authorization = b""
    if url.username is not None:
        user = f"{url.username}:{url.password or ''}".encode("utf-8", "surrogateescape")
        authorization = b"Basic " + b64encode(unquote_to_bytes(user))
    return Proxy(host, port, authorization)


def _exceptions(item: str) -> list[_Exception]:
    """Return what one item of ``NO_PROXY`` excepts; nothing if it cannot be read."""
    if "/" in item:
        try:
            return [_Exception(network=ip_network(item, strict=False))]
        except ValueError:
            return []
    host, port = _split(item)
    if address := _address(host):
        return [_Exception(address=address, port=port)]
    host = host.removeprefix("*") if host.startswith("*.") else host
    if not host.strip("."):
        return []
    itself = not host.startswith(".")
    return [_Exception(name=f".{host}" if itself else host, itself=itself, port=port)]


def _split(item: str) -> tuple[str, str]:
    """Split a port off, if there is one."""
    if item.startswith("["):
        host, _, port = item[1:].partition("]")
        return host, port.removeprefix(":")
    if item.count(":") == 1:
        host, _, port = item.partition(":")
        return host, port
    return item, ""


def _address(host: str) -> _Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
