"""Multicast DNS without a network: a clock whose timers fire when told, and air that carries what tests put in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tieline.names.host import Interface
from tieline.names.mdns.links import Arrival, Receive
from tieline.wire.dns import Message, parse

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "unit" / "names" / "mdns" / "recorded.json").read_text(encoding="utf-8")
)
"""Packets of a running daprd 1.18.3 on host ``box``, 10.77.0.1, and what it made of packets."""

LOOPBACK = Interface(1, True)
ETHERNET = Interface(2, False)
HERE = "10.77.0.1"
ELSEWHERE = "10.77.0.66"


def is_own(address: str, scope: int = 0) -> bool:
    """Whether an address is one of the host in tests."""
    return address in (HERE, "::1") or address.startswith("127.")


def arrival(host: str = HERE, *, link: Interface = LOOPBACK, port: int = 5353, multicast: bool = True) -> Arrival:
    return Arrival((host, port), link, multicast)


class _Timer:
    def __init__(self, at: float, action: Callable[[], object]) -> None:
        self.at = at
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        self.action = None


class Timers:
    """A clock that stands still until ``advance``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[_Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> _Timer:
        timer = _Timer(self.now + delay, lambda: callback(*args))
        self._timers.append(timer)
        return timer

    @property
    def open(self) -> int:
        """How many timers have not fired and are not cancelled."""
        return sum(timer.action is not None for timer in self._timers)

    async def advance(self, seconds: float) -> None:
        """Let time pass, fire what is due, and let those who waited for it run."""
        await settle()
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.action is not None and timer.at <= end]:
            timer = min(due, key=lambda each: each.at)
            action, timer.action = timer.action, None
            self.now = max(self.now, timer.at)
            assert action is not None
            action()
            await settle()
        self.now = end
        await settle()


async def settle() -> None:
    """Let everything that can run now run."""
    for _ in range(5):
        await asyncio.sleep(0)


@dataclass
class Sent:
    """A packet that went out."""

    packet: bytes
    link: Interface
    hops: int
    at: float

    @property
    def message(self) -> Message:
        return parse(self.packet)


@dataclass
class FakeAir:
    """Interfaces that keep what is sent, and bring what the test says.

    Attributes:
        on_question: Called for each question that goes out, with its message.
        comes_next: Interfaces that the next look will find.
    """

    timers: Timers
    links: list[Interface] = field(default_factory=lambda: [LOOPBACK])
    sent: list[Sent] = field(default_factory=list)
    sent_back: list[tuple[bytes, Arrival]] = field(default_factory=list)
    on_question: Callable[[Message], None] | None = None
    comes_next: list[Interface] = field(default_factory=list)
    is_open: bool = False
    _receive: Receive | None = None

    @property
    def count(self) -> int:
        return len(self.links)

    def open(self, receive: Receive) -> None:
        self._receive = receive
        self.is_open = True

    def refresh(self) -> bool:
        new, self.comes_next = self.comes_next, []
        self.links += new
        return bool(new)

    def send(self, packet_for: Callable[[Interface], tuple[bytes, int]], only: Arrival | None = None) -> int:
        chosen = [link for link in self.links if only is None or only.link == link]
        for link in chosen:
            packet, hops = packet_for(link)
            self.sent.append(Sent(packet, link, hops, self.timers.now))
        for link in chosen[:1]:
            message = parse(packet_for(link)[0])
            if self.on_question is not None and message.questions and not message.authorities:
                self.on_question(message)
        return len(chosen)

    def send_back(self, packet: bytes, to: Arrival) -> None:
        self.sent_back.append((packet, to))

    def close(self) -> None:
        self.is_open = False

    def bring(self, packet: bytes | str, came: Arrival | None = None) -> None:
        """Deliver a packet."""
        assert self._receive is not None
        self._receive(bytes.fromhex(packet) if isinstance(packet, str) else packet, came or arrival())

    def questions(self) -> list[Sent]:
        """Return the questions sent, probes aside."""
        return [sent for sent in self.sent if sent.message.questions and not sent.message.authorities]
