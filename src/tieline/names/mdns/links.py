"""The sockets of multicast DNS: one a family on port 5353, shared with the other responders of this host.

Whatever cannot be had is left out: a family that is missing, an interface that cannot be joined, a network that is
down. Nothing here raises or logs more than once; ``refresh`` comes back to what was missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tieline.names.host import Interface, multicast_interfaces
from tieline.wire.dns import MAX_PACKET

PORT: Final = 5353
GROUP_4: Final = "224.0.0.251"
GROUP_6: Final = "ff02::fb"
MAX_LINKS: Final = 64
"""Most interfaces that are used; Linux lets a socket join twenty groups unless told otherwise."""
READS_AT_ONCE: Final = 32
"""Packets read before others have their turn."""

_IP_PKTINFO: Final = 8
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29
_PACKET_INFO_4: Final = struct.Struct("@i4s4s")
_PACKET_INFO_6: Final = struct.Struct("@16sI")
_ANCILLARY: Final = 256

_log: Final = logging.getLogger("tieline.names")


class Arrival(NamedTuple):
    """Where a packet came from.

    Attributes:
        address: The sender's, as sockets have it; its first item is an IP literal.
        link: The interface it came by; number 0 if the system does not say.
        multicast: It was sent to the group, not to this host alone.
    """

    address: tuple[Any, ...]
    link: Interface
    multicast: bool

    @property
    def scope(self) -> int:
        """The interface that a link-local IPv6 address belongs to, 0 for other ones."""
        return int(self.address[3]) if len(self.address) > 3 else 0


Receive = Callable[[bytes, Arrival], None]


class Links:
    """The interfaces of this host that take multicast.

    Life: made without I/O, ``open``, then anything, ``close`` (idempotent).
    """

    def __init__(self) -> None:
        self._receive: Receive | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._joined: dict[int, list[Interface]] = {}
        self._readers: asyncio.AbstractEventLoop | None = None
        self._refused = ""

    @property
    def count(self) -> int:
        """How many interfaces are joined, each family for itself."""
        return sum(map(len, self._joined.values()))

    def open(self, receive: Receive) -> None:
        """Listen from now on; ``receive`` is called with each packet."""
        self._receive = receive
        self._readers = asyncio.get_running_loop()
        self.refresh()

    def refresh(self) -> bool:
        """Look at the interfaces again, and join those that are new; return whether there are new ones."""
        if self._readers is None:
            return False
        before = self._joined
        self._joined = {}
        interfaces = multicast_interfaces()[:MAX_LINKS]
        for family in (socket.AF_INET, socket.AF_INET6):
            if interfaces and family not in self._sockets:
                self._bind(family, self._readers)
            if family in self._sockets:
                self._joined[family] = [each for each in interfaces if _join(self._sockets[family], family, each)]
        return any(each not in before.get(family, ()) for family, joined in self._joined.items() for each in joined)

    def send(self, packet_for: Callable[[Interface], tuple[bytes, int]], only: Arrival | None = None) -> int:
        """Send to the group by each interface; return how many took it.

        Args:
            packet_for: Makes packet and time-to-live for an interface. 0 keeps a packet on this host.
            only: Answer by the interface and the family of this packet alone.
        """
        sent = 0
        for family, joined in self._joined.items():
            if only is not None and _family_of(only) != family:
                continue
            for each in joined:
                if only is not None and only.link.number not in (0, each.number):
                    continue
                packet, hops = packet_for(each)
                sent += _send(self._sockets[family], family, each, packet, hops)
        return sent

    def send_back(self, packet: bytes, to: Arrival) -> None:
        """Send to the sender of a packet alone."""
        sock = self._sockets.get(_family_of(to))
        if sock is not None:
            try:
                sock.sendto(packet, to.address)
            except OSError as error:
                _log.debug("mDNS: no answer to %s: %s", to.address[0], error)

    def close(self) -> None:
        """Let go of the sockets."""
        sockets, self._sockets = self._sockets, {}
        self._joined = {}
        loop, self._readers = self._readers, None
        for sock in sockets.values():
            if loop is not None:
                loop.remove_reader(sock.fileno())
            sock.close()

    def _bind(self, family: int, loop: asyncio.AbstractEventLoop) -> None:
        try:
            sock = _bound(family)
        except OSError as error:
            if self._refused != (reason := str(error)):
                self._refused = reason
                _log.debug("mDNS: port %d cannot be used: %s", PORT, reason)
            return
        self._sockets[family] = sock
        loop.add_reader(sock.fileno(), self._read, sock, family)

    def _read(self, sock: socket.socket, family: int) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                packet, ancillary, flags, address = sock.recvmsg(MAX_PACKET, _ANCILLARY)
            except OSError:
                return  # nothing more to read, or an error that is gone with this
            if not flags & socket.MSG_TRUNC and self._receive is not None:
                number, multicast = _way(family, ancillary)
                link = next((each for each in self._joined.get(family, ()) if each.number == number), None)
                self._receive(packet, Arrival(address, link or Interface(number, False), multicast))


def _bound(family: int) -> socket.socket:
    """Return a socket on the port, beside any others there."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform != "linux":  # where the first option is not enough
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        elif family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            with contextlib.suppress(OSError):  # older kernels hand us what other sockets joined, too
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("" if family == socket.AF_INET else "::", PORT))
    except OSError:
        sock.close()
        raise
    return sock


def _join(sock: socket.socket, family: int, interface: Interface) -> bool:
    """Join the group on an interface; return whether it is joined."""
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(interface))
        else:
            group = socket.inet_pton(family, GROUP_6) + struct.pack("@I", interface.number)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # it is already
    return True


def _send(sock: socket.socket, family: int, interface: Interface, packet: bytes, hops: int) -> bool:
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _membership(interface))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
            sock.sendto(packet, (GROUP_4, PORT))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.number)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
            sock.sendto(packet, (GROUP_6, PORT, 0, interface.number))
    except OSError:
        return False  # no address or route there, a full queue, a firewall: as if the packet were lost
    return True


def _membership(interface: Interface) -> bytes:
    """Return what names group and interface to IPv4: ``struct ip_mreqn``."""
    return socket.inet_aton(GROUP_4) + bytes(4) + struct.pack("@i", interface.number)


def _way(family: int, ancillary: list[tuple[int, int, bytes]]) -> tuple[int, bool]:
    """Return the interface by which a packet came, and whether it was sent to a group."""
    for level, kind, data in ancillary:
        if family == socket.AF_INET and (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            number, _, to = _PACKET_INFO_4.unpack_from(data)
            return number, to[0] & 0xF0 == 0xE0
        if family == socket.AF_INET6 and (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            to, number = _PACKET_INFO_6.unpack_from(data)
            return number, to[0] == 0xFF
    return 0, True


def _family_of(arrival: Arrival) -> int:
    return socket.AF_INET6 if ":" in arrival.address[0] else socket.AF_INET
