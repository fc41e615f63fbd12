"""Another program that speaks multicast DNS, such as ``daprd``, on sockets of its own.

As a process, ``python -m tests.support.mdns_player ADDRESS [HEX…]`` writes a line for each packet that it hears,
``<time-to-live> <sender> <hex>``, and sends the given packets again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tieline.wire.dns import DnsError, Message, parse

_IP_RECVTTL = 12
SEND_EVERY_S = 0.1
GROUP = ("224.0.0.251", 5353)


class Heard(NamedTuple):
    packet: bytes
    hops: int
    sender: tuple[Any, ...]

    @property
    def message(self) -> Message:
        return parse(self.packet)


class Player:
    """Hears and sends by the interface that has an address.

    Attributes:
        heard: Packets in order, its own aside.
        answers: Sent to the group for each question.
    """

    def __init__(self, address: str, *, port: int = 5353) -> None:
        self.heard: list[Heard] = []
        self.answers: list[bytes] = []
        self.on_heard: Callable[[Heard], None] | None = None
        self._own: set[bytes] = set()
        self._came = asyncio.Event()
        self._socket = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._open(address, port)
        except OSError:
            sock.close()
            raise
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    def _open(self, address: str, port: int) -> None:
        sock = self._socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        sock.bind(("", port))
        joined = socket.inet_aton(GROUP[0]) + socket.inet_aton(address)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        sock.setblocking(False)

    def send(self, packet: bytes, to: tuple[str, int] = GROUP) -> None:
        self._own.add(packet)
        self._socket.sendto(packet, to)

    async def hears(self, what: Callable[[Heard], bool], within_s: float = 5.0) -> Heard:
        """Return the first packet, heard or still to come, that is what is waited for."""
        async with asyncio.timeout(within_s):
            while True:
                self._came.clear()
                for heard in self.heard:
                    if what(heard):
                        return heard
                await self._came.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, ancillary, _, sender = self._socket.recvmsg(9000, 64)
                if packet in self._own:
                    continue
                heard = Heard(packet, struct.unpack("@i", ancillary[0][2])[0], sender)
                self.heard.append(heard)
                self._came.set()
                if self.on_heard is not None:
                    self.on_heard(heard)
                with contextlib.suppress(DnsError):
                    if self.answers and heard.message.questions and not heard.message.authorities:
                        for answer in self.answers:
                            self.send(answer)


async def joined(address: str) -> Player:
    """Return a player once the interface is there, which another process brings."""
    while True:
        try:
            return Player(address)
        except OSError:
            await asyncio.sleep(0.02)


async def main(address: str, *answers: str) -> None:
    player = await joined(address)
    player.on_heard = lambda heard: print(heard.hops, heard.sender[0], heard.packet.hex(), flush=True)
    print("listening", flush=True)
    while True:
        for answer in answers:
            with contextlib.suppress(OSError):  # the interface has its address, but is not up yet
                player.send(bytes.fromhex(answer))
        await asyncio.sleep(SEND_EVERY_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
