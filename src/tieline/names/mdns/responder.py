"""What a sidecar tells others about its app: Dapr's records, announcements, and answers to questions.

Not what DNS-SD prescribes: the type of the service is the bare app ID (N-15). Others find us only if every record
looks as Dapr's do, so their order, bits and TTLs are Dapr's too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from tieline.wire.dns import (
    AUTHORITATIVE,
    OPCODE,
    PTR,
    RESPONSE,
    Address,
    Message,
    Name,
    Pointer,
    Question,
    Record,
    Service,
    Text,
)

LOCAL: Final = b"local"
ALL_SERVICES: Final[Name] = (b"_services", b"_dns-sd", b"_udp", LOCAL)
"""Who asks for this name wants to know which services there are."""
TTL_S: Final = 3200
ADDRESS_TTL_S: Final = 120
NAMESPACE_KEY: Final = b"tieline-ns="
"""Opens the string behind the app ID in TXT that names the namespace; Dapr reads the first string only (N-53)."""
DEFAULT_NAMESPACE: Final = "default"
"""Not written, so that the records of most apps are Dapr's to the byte."""
MAX_ANSWERED: Final = 16
"""Most questions of one packet that are answered."""
MAX_HOST: Final = 63


class Registration(NamedTuple):
    """One app as others are to see it.

    Attributes:
        host: Name of the host without ``local``; ``<host>:<pid>`` names the instance.
        alias: Name under which the address is given, without ``local``; ``host`` if empty.
        address: IP literal.
    """

    app_id: str
    namespace: str
    host: str
    pid: int
    address: str
    port: int
    alias: str = ""


class Reply(NamedTuple):
    """An answer, and whether it goes to the asker alone."""

    message: Message
    unicast: bool


def service_name(app_id: str) -> Name:
    """Return the name that is asked for to find an app."""
    return (app_id.encode("utf-8", "surrogateescape"), LOCAL)


class Responder:
    """Speaks for one registration."""

    def __init__(self, registration: Registration) -> None:
        it = registration
        self.registration = it
        self._service = service = service_name(it.app_id)
        # Cut so that the whole is a label; a host name that is so long is none that anybody can look up.
        pid = b":%d" % it.pid
        self._instance = instance = (_bytes(it.host)[: MAX_HOST - len(pid)] + pid, *service)
        host = (*(label[:MAX_HOST] for label in _bytes(it.alias or it.host).split(b".") if label), LOCAL)
        strings = [service[0]]
        if it.namespace != DEFAULT_NAMESPACE:
            strings.append((NAMESPACE_KEY + _bytes(it.namespace))[:255])
        self._text = Text(instance, TTL_S, tuple(strings))
        self._srv = Service(instance, TTL_S, it.port, host)
        self._pointer = Pointer(service, TTL_S, instance)
        self._listing = Pointer(ALL_SERVICES, TTL_S, service)
        self._address = Address(host, ADDRESS_TTL_S, it.address)

    def may_concern(self, packet: bytes) -> bool:
        """Whether a packet can hold a question for us, without reading it: our label must stand somewhere in it."""
        return self._service[0] in packet or ALL_SERVICES[1] in packet

    def probe(self, identity: int) -> Message:
        """Return the message that is sent twice before the first announcement; to be rendered uncompressed (N-19)."""
        return Message(identity, 0, [Question(self._instance, PTR)], authorities=[self._srv, self._text])

    def announcement(self) -> Message:
        """Return what is sent, twice, when the app is there (N-19)."""
        return Message(flags=RESPONSE, answers=[*self._about_instance(), self._address._replace(flush=True)])

    def goodbye(self) -> Message:
        """Return what is sent once when the app goes; to be rendered uncompressed (N-21)."""
        return Message(flags=RESPONSE, answers=[record._replace(ttl=0) for record in self.announcement().answers])

    def replies(self, message: Message) -> Iterator[Reply]:
        """Answer each question for us by a message of its own (N-20).

        Neither the type of a question nor most of the query's flags are looked at. A query with records in its
        authority section is a probe of somebody else's.
        """
        if message.authorities:
            return
        for question in message.questions[:MAX_ANSWERED]:
            answers, additionals = self._answer(question.name)
            if answers and not _is_known(answers[0], message):
                flags = RESPONSE | AUTHORITATIVE | message.flags & OPCODE
                yield Reply(Message(message.id, flags, (), answers, (), additionals), question.unicast)

    def _answer(self, name: Name) -> tuple[list[Record], list[Record]]:
        if name == self._service:
            return [self._pointer], [self._srv, self._text, self._address]
        if name == self._instance:
            return [*self._about_instance(), self._address], []
        return ([self._listing], []) if name == ALL_SERVICES else ([], [])

    def _about_instance(self) -> list[Record]:
        return [self._srv._replace(flush=True), self._text._replace(flush=True), self._pointer, self._listing]


def _is_known(answer: Record, message: Message) -> bool:
    """Whether the asker says that it knows an answer, and will for half of its time at least."""
    return isinstance(answer, Pointer) and any(
        isinstance(known, Pointer)
        and (known.name, known.target) == (answer.name, answer.target)
        and known.ttl >= answer.ttl // 2
        for known in message.answers
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
