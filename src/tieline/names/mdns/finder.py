"""What is asked, heard and remembered of other apps.

An answer counts if one packet holds SRV and TXT of an instance and an address of the SRV's target, wherever in it
(N-23). Addresses are kept by app ID for as long as they are heard of. Only apps that were asked for are listened to,
so what others announce cannot fill our memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple

from tieline.model import Endpoint
from tieline.names.mdns.responder import LOCAL, NAMESPACE_KEY
from tieline.wire.dns import Address, Message, Name, Record, Service, Text

FIRST_S: Final = 1.0
"""How long a look-up waits for the first answer (N-26)."""
MISS_S: Final = 1.0
"""How long nothing is asked about an app that did not answer (N-29 repaired)."""
KEEP_S: Final = 60.0
"""How long an address is used after it was last heard of (N-28)."""
WANTED_S: Final = 300.0
"""How long after its last look-up an app is still asked after at the tick."""
MAX_APPS: Final = 1024
"""Most apps that are known, asked for or missed; the one not looked up for longest goes first."""
MAX_ENDPOINTS: Final = 64
"""Most addresses of an app; further ones are not taken until one goes."""
MAX_FOUND: Final = 64
"""Most instances that are read from one packet."""


class Found(NamedTuple):
    """An instance in a packet.

    Attributes:
        namespace: ``None`` if the record does not say, as ``daprd``'s do not.
        endpoints: The first address of each family, IPv4 first; as told, nothing is believed yet.
        gone: It takes its leave.
    """

    app_id: bytes
    instance: Name
    namespace: bytes | None
    endpoints: tuple[Endpoint, ...]
    port: int
    gone: bool


class _Known(NamedTuple):
    """What is remembered with an address."""

    instance: Name
    namespace: bytes | None
    until: float


class _App:
    """What is known about one app ID."""

    __slots__ = ("answered", "known", "missed_until", "wanted_at")

    def __init__(self) -> None:
        self.known: dict[Endpoint, _Known] = {}
        self.answered: set[Name] = set()
        """Instances that answered since the app was last asked for; a second, other answer does not count (N-23)."""
        self.missed_until = float("-inf")
        self.wanted_at = float("-inf")


class Finder:
    """The memory of one sidecar. Times are passed in, in seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._apps: dict[bytes, _App] = {}

    # --- looking up ---

    def endpoints(self, app_id: bytes, namespace: bytes, now: float) -> list[Endpoint]:
        """Return where an app is, as far as known; IPv6 only where there is no IPv4 (N-25).

        Instances that say their namespace come before those that do not; those of another one are left out.
        """
        app = self._apps.get(app_id)
        if app is None:
            return []
        alive = [(endpoint, known.namespace) for endpoint, known in app.known.items() if now < known.until]
        sure = [endpoint for endpoint, said in alive if said == namespace]
        usable = sure or [endpoint for endpoint, said in alive if said is None]
        return [endpoint for endpoint in usable if ":" not in endpoint.host] or usable

    def is_missed(self, app_id: bytes, now: float) -> bool:
        """Whether nobody answered for an app just now, so that asking again is no use yet."""
        app = self._apps.get(app_id)
        return app is not None and now < app.missed_until

    def want(self, app_id: bytes, now: float) -> None:
        """Note a look-up: from now on the app is listened to."""
        app = self._apps.pop(app_id, None) or _App()
        if len(self._apps) >= MAX_APPS:
            del self._apps[next(iter(self._apps))]
        self._apps[app_id] = app  # at the end: it was looked up last
        app.wanted_at = now

    def ask(self, app_id: bytes) -> None:
        """Note that a question goes out: each instance may tell its address anew."""
        if app := self._apps.get(app_id):
            app.answered.clear()

    def miss(self, app_id: bytes, now: float) -> None:
        """Note that nobody answered."""
        if app := self._apps.get(app_id):
            app.missed_until = now + MISS_S

    def known(self, now: float) -> list[tuple[bytes, bytes | None]]:
        """Return ID and namespace of the apps that can be called now."""
        return sorted(
            {
                (app_id, known.namespace)
                for app_id, app in self._apps.items()
                for known in app.known.values()
                if now < known.until
            },
            key=lambda pair: (pair[0], pair[1] or b""),
        )

    # --- hearing ---

    def may_concern(self, packet: bytes) -> bool:
        """Whether a packet can tell of an app that is listened to, without reading it."""
        return any(app_id in packet for app_id in self._apps)

    def hear(self, message: Message, now: float, believe: Callable[[str], bool]) -> list[bytes]:
        """Take in what a message tells of the apps that are listened to, and return the IDs of those just found.

        Args:
            believe: Whether an address may be used.
        """
        told: list[bytes] = []
        for found in read_instances(message):
            app = self._apps.get(found.app_id)
            if app is None:
                continue
            if found.gone:
                _part(app, found)
            elif _meet(app, found, now, believe) and found.app_id not in told:
                told.append(found.app_id)
        return told

    def tick(self, now: float) -> list[bytes]:
        """Forget what is old, and return the apps to ask after: those known and lately looked up (N-28)."""
        due: list[bytes] = []
        for app_id, app in tuple(self._apps.items()):
            app.known = {endpoint: known for endpoint, known in app.known.items() if now < known.until}
            if app.known and now - app.wanted_at < WANTED_S:
                due.append(app_id)
            elif not app.known and now >= app.missed_until and now - app.wanted_at > FIRST_S:
                del self._apps[app_id]
        return due


def read_instances(message: Message) -> Iterator[Found]:
    """Yield the instances of apps that a message tells of completely, or says goodbye for (N-23).

    Of several SRV or TXT records of one instance the last counts, of addresses the first.
    """
    records: list[Record] = [*message.answers, *message.authorities, *message.additionals]
    services = {record.name: record for record in records if isinstance(record, Service)}
    texts = {record.name: record for record in records if isinstance(record, Text)}
    addresses: dict[Name, list[str]] = {}
    for record in records:
        if isinstance(record, Address) and record.ttl:
            addresses.setdefault(record.name, []).append(record.address)
    for name, service in list(services.items())[:MAX_FOUND]:
        text = texts.get(name)
        if text is None or not _names_app(name, text) or not service.port:
            continue
        gone = not (service.ttl and text.ttl)
        endpoints = tuple(Endpoint(host, service.port) for host in _first_of_each(addresses.get(service.target, ())))
        if gone or endpoints:
            yield Found(name[-2], name, _namespace(text), endpoints, service.port, gone)


def _names_app(name: Name, text: Text) -> bool:
    """Whether a name is an instance's, and the first string of its TXT the app ID in that name."""
    return len(name) > 2 and name[-1] == LOCAL and text.strings[:1] == (name[-2],)


def _namespace(text: Text) -> bytes | None:
    return next((string[len(NAMESPACE_KEY) :] for string in text.strings[1:] if string.startswith(NAMESPACE_KEY)), None)


def _first_of_each(addresses: Sequence[str]) -> list[str]:
    """Return the first IPv4 and the first IPv6 address that can be dialled, in this order."""
    usable = [address for address in addresses if _is_dialable(address)]
    firsts = (
        next((address for address in usable if ":" not in address), ""),
        next((address for address in usable if ":" in address), ""),
    )
    return [address for address in firsts if address]


def _is_dialable(text: str) -> bool:
    """Whether an address means one host. A link-local one of IPv6 means none without its interface."""
    address = ip_address(text)
    if address.is_multicast or address.is_unspecified or text == "255.255.255.255":
        return False
    return not (address.version == 6 and address.is_link_local)


def _meet(app: _App, found: Found, now: float, believe: Callable[[str], bool]) -> bool:
    """Remember where an instance is; return whether that told something usable."""
    usable = [endpoint for endpoint in found.endpoints if believe(endpoint.host)]
    if not usable:
        return False
    again = found.instance in app.answered
    if not again and len(app.answered) >= MAX_ENDPOINTS:
        return False
    app.answered.add(found.instance)
    taken = False
    for endpoint in usable:
        if endpoint in app.known or not (again or len(app.known) >= MAX_ENDPOINTS):
            app.known[endpoint] = _Known(found.instance, found.namespace, now + KEEP_S)
            taken = True
    if taken:
        app.missed_until = float("-inf")
    return taken


def _part(app: _App, found: Found) -> None:
    """Forget an instance that said goodbye; another one may have its name, at another port."""
    app.answered.discard(found.instance)
    app.known = {
        endpoint: known
        for endpoint, known in app.known.items()
        if (known.instance, endpoint.port) != (found.instance, found.port)
    }
