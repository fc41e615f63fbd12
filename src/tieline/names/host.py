"""Where this host is reachable, and which internal port it takes when nobody says."""

from __future__ import annotations

import array
import hashlib
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

MAX_ADDRESSES: Final = 1024
"""Most IPv4 addresses of this host that are looked at."""
PORT_BASE: Final = 47300
PORT_SPAN: Final = 18235
"""Derived internal ports are ``PORT_BASE`` … ``PORT_BASE + PORT_SPAN - 1`` (H-5)."""

_PROBES: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses for documentation (RFC 5737, RFC 3849): connecting a UDP socket sends nothing, it asks the routes."""

_SIOCGIFCONF: Final = 0x8912
_SIOCGIFFLAGS: Final = 0x8913
_UP, _LOOPBACK, _MULTICAST = 0x1, 0x8, 0x1000
_CARRIER_GRADE: Final = ipaddress.ip_network("100.64.0.0/10")
_TRANSLATION: Final = ipaddress.ip_network("192.0.0.0/29")
"""Addresses of DS-Lite and 464XLAT stubs: every such host has the same, so they say nothing (N-6)."""
_UNIQUE_LOCAL: Final = ipaddress.ip_network("fc00::/7")

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Interface(NamedTuple):
    """A network interface; number 0 is the one that the system chooses."""

    number: int
    is_loopback: bool


def host_address(environ: Mapping[str, str]) -> str:
    """Return the address under which other hosts reach this one (N-6), without brackets.

    ``DAPR_HOST_IP`` is taken as it stands, so it may be a name. ``127.0.0.1`` on a host without any network.
    """
    given = environ.get("DAPR_HOST_IP", "")
    return given or _routed() or best_of(interface_addresses()) or "127.0.0.1"


def announced_address(listen: str | None, environ: Mapping[str, str]) -> str:
    """Return the IP literal by which others reach what listens on an address (N-5, N-16 repaired).

    Args:
        listen: ``None`` if it listens on loopback because nobody said where; empty for all interfaces.
        environ: ``DAPR_HOST_IP`` counts unless it listens on loopback, or it is no IP literal.
    """
    host = "127.0.0.1" if listen in (None, "localhost") else listen.strip("[]")
    address, given = _parsed(host), _parsed(environ.get("DAPR_HOST_IP", "").strip("[]"))
    if address is not None and address.is_loopback:
        return str(address)
    if given is not None:
        return str(given)
    if address is not None and not address.is_unspecified:
        return str(address)
    return host_address({})


def is_own_address(text: str, scope: int = 0) -> bool:
    """Whether an IP literal is one of this host's.

    Args:
        scope: Number of the interface that a link-local IPv6 address belongs to.
    """
    address = _parsed(text)
    if address is None or address.is_unspecified or address.is_multicast:
        return False
    if address.is_loopback:
        return True
    # What goes to an address of this host comes from that very address. No packet is sent.
    try:
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as end:
            end.connect((text, 9) if address.version == 4 else (text, 9, 0, scope))
            return _parsed(end.getsockname()[0]) == address
    except OSError:
        return False


def multicast_interfaces() -> list[Interface]:
    """Return the interfaces that are up and take multicast, as far as the system tells."""
    if sys.platform != "linux":
        return [Interface(0, False)]
    import fcntl  # absent on Windows

    found: list[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        for number, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(end.fileno(), _SIOCGIFFLAGS, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it went meanwhile
            flags = int.from_bytes(answer[16:18], sys.byteorder)
            if flags & _UP and flags & _MULTICAST:
                found.append(Interface(number, bool(flags & _LOOPBACK)))
    return found


def internal_port(app_id: str, folder: str, uid: int, hostname: str) -> int:
    """Return the port that an app keeps over restarts when none is given (H-5). It may be taken."""
    digest = hashlib.sha256(f"{app_id}|{folder}|{uid}|{hostname}".encode("utf-8", "surrogateescape")).digest()
    return PORT_BASE + int.from_bytes(digest[:2], "little") % PORT_SPAN


def own_internal_port(app_id: str) -> int:
    """Return ``internal_port`` for an app whose sidecar is this process."""
    try:
        folder = str(Path.cwd())
    except OSError:
        folder = ""  # it was removed, and still is no reason not to start
    return internal_port(app_id, folder, os.getuid(), socket.gethostname())


def best_of(addresses: Iterable[str]) -> str:
    """Return the address that most others can reach, ``""`` if there is none but loopback (N-6)."""
    ranked = [(rank, text) for text in addresses if (rank := _rank(text)) is not None]
    return min(ranked, key=lambda pair: pair[0], default=(0, ""))[1]


def interface_addresses() -> list[str]:
    """Return the IP addresses of this host's interfaces, loopback included, as far as the system tells."""
    if sys.platform != "linux":
        return _addresses_of_own_name()
    return _ipv4_of_interfaces() + _ipv6_of_interfaces()


def _routed() -> str:
    """Return the local address that the routes choose for far-away hosts, ``""`` without a route."""
    for family, probe in _PROBES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as end:
                end.connect((probe, 80))
                local = str(end.getsockname()[0])
        except OSError:
            continue
        if _rank(local) is not None:
            return local
    return ""


def _rank(text: str) -> int | None:
    """Return how well others reach an address, 0 best; ``None`` if they cannot."""
    address = _parsed(text)
    if address is None or address.is_loopback or address.is_unspecified or address.is_multicast:
        return None
    if address.is_link_local:
        return 4
    if isinstance(address, ipaddress.IPv6Address):
        return 3 if address in _UNIQUE_LOCAL else 1
    if address in _TRANSLATION:
        return None
    return 2 if address.is_private or address in _CARRIER_GRADE else 0


def _parsed(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _addresses_of_own_name() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return [str(info[4][0]) for info in found]


def _ipv4_of_interfaces() -> list[str]:
    """Return all IPv4 addresses, also where an interface has several."""
    import fcntl  # absent on Windows

    entry = 16 + (24 if struct.calcsize("P") == 8 else 16)
    buffer = array.array("B", bytes(entry * MAX_ADDRESSES))
    place, size = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            answer = fcntl.ioctl(end.fileno(), _SIOCGIFCONF, struct.pack("@iP", size, place))
        except OSError:
            return []
    used = min(struct.unpack("@iP", answer)[0], size)
    return [socket.inet_ntoa(buffer[at + 20 : at + 24].tobytes()) for at in range(0, used, entry)]


def _ipv6_of_interfaces() -> list[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    return [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines]
