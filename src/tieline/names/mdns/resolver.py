"""The ``mdns`` resolver: Dapr's default, by which ``daprd`` processes find Tieline's sidecars, and are found.

Without mTLS an answer counts only if it comes from this host and names an address of this host, and what listens on
loopback only is told to this host only: those packets never leave it (time-to-live 0).
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, Protocol, TypeAlias, cast

from tieline.errors import ConfigError, ResolverFailed, UnknownTarget
from tieline.model import Endpoint, Target
from tieline.names.host import Interface, is_own_address
from tieline.names.mdns.finder import FIRST_S, Finder
from tieline.names.mdns.links import Arrival, Links, Receive
from tieline.names.mdns.responder import LOCAL, Registration, Responder, service_name
from tieline.names.resolver import InstanceFacts, Resolver, ResolverSpec, Spawn, init_failure, label_of
from tieline.wire.dns import PTR, DnsError, Message, Question, parse, render

TICK_S: Final = 30.0
"""Pause between two looks at the interfaces, each of which also asks after the apps that are known (N-28)."""
PROBES: Final = 2
PROBE_WITHIN_S: Final = 0.25
"""Longest wait before each probe and before the first announcement (N-19)."""
ANNOUNCE_AGAIN_S: Final = 1.0
ASK_TIMES: Final = 2
"""How often a question is sent at once: packets may be lost (N-22)."""
ASKED_AT_ONCE: Final = 32
"""Apps asked after at once at the tick; the next ones ``ASK_PAUSE_S`` later."""
ASK_PAUSE_S: Final = 0.1
MAX_BROWSES: Final = 256
"""Most apps that are looked for at one time."""
MAX_SOURCES: Final = 256
"""Most senders of which is remembered, until the tick, whether they are this host."""
HOPS: Final = 1
"""Time-to-live of packets for the network (N-55)."""
THIS_HOST: Final = 0
"""Time-to-live of packets that must not leave this host."""

_log: Final = logging.getLogger("tieline.names")

_Waiting: TypeAlias = tuple[bytes, asyncio.Future[list[Endpoint]]]
"""A look-up that waits: for which namespace, and for what."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """The clock of an event loop."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...


class Air(Protocol):
    """What packets go through: ``Links``."""

    @property
    def count(self) -> int: ...
    def open(self, receive: Receive) -> None: ...
    def refresh(self) -> bool: ...
    def send(self, packet_for: Callable[[Interface], tuple[bytes, int]], only: Arrival | None = None) -> int: ...
    def send_back(self, packet: bytes, to: Arrival) -> None: ...
    def close(self) -> None: ...


class _Speaker:
    """Speaks for our app, and sees to it that who cannot call it does not hear of it.

    An address of loopback is told under a name of its own: another responder here, such as Avahi, may already say
    what the host's name means, and would take a second meaning for a conflict. On the loopback interface there is none.

    Raises:
        DnsError: The app ID does not fit into a DNS name.
    """

    def __init__(self, registration: Registration) -> None:
        self.address = registration.address
        self.is_local = ip_address(registration.address).is_loopback
        self.hops = THIS_HOST if self.is_local else HOPS
        self._plain = Responder(registration)
        alias = f"{registration.host.partition('.')[0]}-loopback"
        self._local = Responder(registration._replace(alias=alias)) if self.is_local else self._plain
        render(self._local.announcement())

    def may_answer(self, packet: bytes, came: Arrival, own: bool) -> bool:
        """Whether a packet may ask for what its sender is to know.

        Who is elsewhere must have asked the group: a question sent to this host alone may come from anywhere.
        """
        return (own or (came.multicast and not self.is_local)) and self._plain.may_concern(packet)

    def at(self, link: Interface) -> Responder:
        return self._plain if link.is_loopback else self._local

    def probe(self, identity: int, link: Interface) -> tuple[bytes, int]:
        return self._rendered(self.at(link).probe(identity), link, compress=False)

    def announcement(self, link: Interface) -> tuple[bytes, int]:
        return self._rendered(self.at(link).announcement(), link)

    def goodbye(self, link: Interface) -> tuple[bytes, int]:
        return self._rendered(self.at(link).goodbye(), link, compress=False)

    def _rendered(self, message: Message, link: Interface, *, compress: bool = True) -> tuple[bytes, int]:
        return _packet_for(render(message, compress=compress), self.hops)(link)


class _Browse:
    """A search for one app, shared by all who look it up meanwhile."""

    __slots__ = ("timer", "waiting")

    def __init__(self, timer: Timer) -> None:
        self.timer = timer
        self.waiting: list[_Waiting] = []


def mdns(spec: ResolverSpec, facts: InstanceFacts, spawn: Spawn) -> Resolver:
    """Make the resolver that a user configured.

    Dapr knows no keys here; ``trustNetwork: true`` is Tieline's own.

    Raises:
        ConfigError: ``trustNetwork`` is neither true nor false, or a fact that is announced is missing (N-17).
    """
    label = label_of(spec)
    remedy = "correct spec.nameResolution.configuration"
    try:
        trust = _trusts_network(spec.configuration)
        for what, is_there in (("name", facts.app_id), ("port", 0 < facts.internal_port < 65536)):
            if not is_there:
                raise ConfigError(f"{what} is missing{' or invalid' if what == 'port' else ''}")
    except ConfigError as error:
        raise init_failure(label, str(error), remedy) from None
    return MdnsResolver(facts, trust_network=trust, alone=True)


class MdnsResolver:
    """A resolver on ``Links``.

    Args:
        facts: What is announced.
        trust_network: Believe other hosts too, and ask them.
        alone: No other resolver finds apps if this one cannot, so that its trouble is worth a warning.
        air: For tests.
        timers: The running event loop by default.
        is_own: Whether an address is this host's; the second argument is the interface of a link-local one.
        jitter: Returns a random number between 0 and the given one.
    """

    name = "mDNS"

    def __init__(
        self,
        facts: InstanceFacts,
        *,
        trust_network: bool = False,
        alone: bool = False,
        air: Air | None = None,
        timers: Timers | None = None,
        is_own: Callable[[str, int], bool] = is_own_address,
        jitter: Callable[[float], float] = lambda most: random.uniform(0.0, most),
        host: str = "",
    ) -> None:
        self._facts = facts
        self._trust_network = trust_network
        self._alone = alone
        self._air: Air = Links() if air is None else air
        self._given_timers = timers
        self._is_own_address = is_own
        self._jitter = jitter
        self._host = host or socket.gethostname()
        self._finder = Finder()
        self._browses: dict[bytes, _Browse] = {}
        self._own_sources: dict[tuple[str, int], bool] = {}
        self._speaker: _Speaker | None = None
        self._announcing: Timer | None = None
        self._ticking: Timer | None = None
        self._asking: Timer | None = None

    # --- life ---

    async def start(self) -> None:
        self._air.open(self._received)
        self._ticking = self._timers.call_later(TICK_S, self._tick)
        if not self._air.count:
            level = logging.WARNING if self._alone else logging.DEBUG
            _log.log(level, "mDNS: no interface takes multicast now; looking again every %d s", TICK_S)

    async def announce(self) -> None:
        if self._speaker is None and self._ticking is not None:
            self._speak_up(self._facts.announced_address())
            if self._speaker is not None:
                self._announcing = self._timers.call_later(
                    self._jitter(PROBE_WITHIN_S), self._probe, PROBES, random.getrandbits(16)
                )

    async def withdraw(self) -> None:
        speaker, self._speaker = self._speaker, None
        if self._announcing is not None:
            self._announcing.cancel()
        if speaker is not None:
            self._air.send(speaker.goodbye)

    async def aclose(self) -> None:
        await self.withdraw()
        for timer in (self._ticking, self._asking):
            if timer is not None:
                timer.cancel()
        self._ticking = None
        for app_id in tuple(self._browses):
            self._end_browse(app_id)
        self._air.close()

    # --- looking up ---

    async def resolve(self, target: Target) -> Sequence[Endpoint]:
        app_id, namespace = service_name(target.app_id)[0], _bytes(target.namespace)
        now = self._timers.time()
        self._finder.want(app_id, now)
        found = self._finder.endpoints(app_id, namespace, now)
        if not found and not self._finder.is_missed(app_id, now) and self._ticking is not None:
            found = await self._browse(app_id, namespace)
        if not found:
            raise UnknownTarget(f"couldn't find service: {target.app_id}")
        return found

    async def known(self) -> Sequence[str]:
        own = _bytes(self._facts.namespace)
        return [
            (app_id if said in (None, own) else b"%b.%b" % (app_id, said)).decode("utf-8", "surrogateescape")
            for app_id, said in self._finder.known(self._timers.time())
        ]

    async def _browse(self, app_id: bytes, namespace: bytes) -> list[Endpoint]:
        """Ask for an app, and return its endpoints as soon as there are any; none after ``FIRST_S``."""
        browse = self._browses.get(app_id)
        if browse is None:
            if len(self._browses) >= MAX_BROWSES:
                raise ResolverFailed(f"more than {MAX_BROWSES} look-ups at a time by mDNS")
            if not self._ask(app_id) and not (self._look_around() and self._ask(app_id)):
                return []  # nobody can hear us, so there is nothing to wait for
            browse = _Browse(self._timers.call_later(FIRST_S, self._missed, app_id))
            self._browses[app_id] = browse
        waiting: _Waiting = (namespace, asyncio.get_running_loop().create_future())
        browse.waiting.append(waiting)
        try:
            return await waiting[1]
        finally:
            if waiting in browse.waiting:
                browse.waiting.remove(waiting)

    def _ask(self, app_id: bytes) -> int:
        """Send the question for an app; return how many interfaces took it."""
        self._finder.ask(app_id)
        hops = HOPS if self._trust_network else THIS_HOST
        sent = 0
        try:
            for _ in range(ASK_TIMES):
                question = Question((app_id, LOCAL), PTR)
                packet = render(Message(random.getrandbits(16), questions=[question]))
                sent += self._air.send(_packet_for(packet, hops))
        except DnsError:
            return 0  # an ID that no DNS name can hold
        return sent

    def _missed(self, app_id: bytes) -> None:
        self._finder.miss(app_id, self._timers.time())
        self._end_browse(app_id)

    def _end_browse(self, app_id: bytes) -> None:
        browse = self._browses.pop(app_id, None)
        if browse is not None:
            browse.timer.cancel()
            for _, answer in browse.waiting:
                if not answer.done():
                    answer.set_result([])

    def _told(self, app_id: bytes, now: float) -> None:
        """Hand what was just heard to those who wait for it."""
        browse = self._browses.get(app_id)
        if browse is None:
            return
        for namespace, answer in browse.waiting:
            found = self._finder.endpoints(app_id, namespace, now)
            if found and not answer.done():
                answer.set_result(found)
        if all(answer.done() for _, answer in browse.waiting):
            self._end_browse(app_id)
            self._ask(app_id)  # there may be more instances (N-27)

    # --- hearing ---

    def _received(self, packet: bytes, came: Arrival) -> None:
        """Take a packet from the network: first the checks that cost little, since there may be many."""
        own = self._is_own(came)
        speaker = self._speaker
        asked = speaker is not None and speaker.may_answer(packet, came, own)
        told = (own or self._trust_network) and self._finder.may_concern(packet)
        if not asked and not told:
            return
        try:
            message = parse(packet)
        except DnsError as error:
            _log.debug("mDNS: a packet from %s is not used: %s", came.address[0], error)
            return
        if asked and speaker is not None:
            self._answer(speaker, message, came)
        if told:
            now = self._timers.time()
            for app_id in self._finder.hear(message, now, lambda host: self._believes(host, own)):
                self._told(app_id, now)

    def _answer(self, speaker: _Speaker, message: Message, came: Arrival) -> None:
        for reply in speaker.at(came.link).replies(message):
            packet = render(reply.message)
            if reply.unicast:
                self._air.send_back(packet, came)
            else:
                self._air.send(_packet_for(packet, speaker.hops), came)

    def _believes(self, host: str, from_here: bool) -> bool:
        """Whether an address may be dialled: this host's; with trust also another's, but no other host's loopback."""
        if from_here and self._is_own_address(host, 0):
            return True
        return self._trust_network and not ip_address(host).is_loopback

    def _is_own(self, came: Arrival) -> bool:
        """Whether a packet comes from this host."""
        source = (came.address[0], came.scope)
        own = self._own_sources.get(source)
        if own is None:
            if len(self._own_sources) >= MAX_SOURCES:
                self._own_sources.clear()
            own = self._own_sources[source] = self._is_own_address(*source)
        return own

    # --- speaking ---

    def _speak_up(self, address: str) -> None:
        facts = self._facts
        registration = Registration(
            app_id=facts.app_id,
            namespace=facts.namespace,
            host=self._host,
            pid=facts.pid,
            address=address,
            port=facts.internal_port,
        )
        try:
            self._speaker = _Speaker(registration)
        except DnsError as error:
            _log.warning("mDNS: %s cannot be announced: %s", facts.app_id, error)
            return
        where = "this host" if self._speaker.is_local else "the network"
        _log.debug("mDNS: announcing %s at %s to %s", facts.app_id, Endpoint(address, facts.internal_port), where)

    def _probe(self, times: int, identity: int) -> None:
        if self._speaker is None:
            return
        if times:
            self._air.send(partial(self._speaker.probe, identity))
            self._announcing = self._timers.call_later(self._jitter(PROBE_WITHIN_S), self._probe, times - 1, identity)
        else:
            self._announce_now()
            self._announcing = self._timers.call_later(ANNOUNCE_AGAIN_S, self._announce_now)

    def _announce_now(self) -> None:
        if self._speaker is not None:
            self._air.send(self._speaker.announcement)

    # --- the tick ---

    def _tick(self) -> None:
        self._ticking = self._timers.call_later(TICK_S, self._tick)
        self._look_around()
        self._ask_after(self._finder.tick(self._timers.time()))

    def _look_around(self) -> bool:
        """See what became of the network, and tell it what is new; return whether there are new interfaces."""
        self._own_sources.clear()
        has_new_links = self._air.refresh()
        if self._speaker is not None:
            address = self._facts.announced_address()
            if address != self._speaker.address:
                self._air.send(self._speaker.goodbye)
                self._speak_up(address)
                self._announce_now()
            elif has_new_links:
                self._announce_now()
        return has_new_links

    def _ask_after(self, app_ids: list[bytes]) -> None:
        """Ask after apps that are known, some at a time."""
        for app_id in app_ids[:ASKED_AT_ONCE]:
            self._ask(app_id)
        rest = app_ids[ASKED_AT_ONCE:]
        self._asking = self._timers.call_later(ASK_PAUSE_S, self._ask_after, rest) if rest else None

    @property
    def _timers(self) -> Timers:
        return self._given_timers or asyncio.get_running_loop()


def _packet_for(packet: bytes, hops: int) -> Callable[[Interface], tuple[bytes, int]]:
    """Return what to send by each interface. What goes to the loopback interface stays on this host anyway."""
    return lambda link: (packet, HOPS if link.is_loopback else hops)


def _trusts_network(configuration: object) -> bool:
    """Read the only key there is, in any case (N-4); others are ignored, as Dapr ignores all.

    Raises:
        ConfigError: Its value could be taken for either.
    """
    if configuration is None:
        return False
    if not isinstance(configuration, Mapping):
        raise ConfigError(f"input object cannot be cast to map[string]string: it is {type(configuration).__name__}")
    for key, value in cast("Mapping[object, object]", configuration).items():
        if str(key).lower() == "trustnetwork":
            text = str(value).strip().lower()
            if text not in ("true", "false"):
                raise ConfigError(f"invalid value for 'trustNetwork': {value!r}; write true or false")
            return text == "true"
    return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
