"""Cases of ``tests/e2e/test_mdns.py``, which runs them in a network of their own.

There ``lo`` takes multicast and has 10.77.0.1 too, and root of the namespace may make further interfaces.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.app import Exchange, echo
from tests.support.mdns_player import GROUP, Heard, Player
from tests.support.mesh import Mesh, Process, Sidecar, until
from tieline.names.host import interface_addresses, is_own_address
from tieline.names.mdns.responder import Registration, Responder, service_name
from tieline.wire.dns import PTR, Address, Message, Question, Service, render

HERE = "10.77.0.1"
_numbers = itertools.count(1)


class Net:
    """Sidecars of one network, each with a registry of its own, so that only mDNS can find them."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh = mesh
        self._folder = folder
        self._players: list[Player] = []
        self._links: list[str] = []

    async def callee(self, name: str = "callee", *flags: str, namespace: str = "") -> Sidecar:
        """Start a sidecar with an app that answers with the callee's name."""

        async def handler(exchange: Exchange) -> None:
            await exchange.body()
            exchange.answer(200, name.encode())

        return await self.sidecar(name, await self.mesh.app(handler), *flags, namespace=namespace)

    async def sidecar(
        self, app_id: str, app: object = None, *flags: str, namespace: str = "", component: str = "", trust: str = ""
    ) -> Sidecar:
        number = next(_numbers)
        more = list(flags)
        if component:
            config = self._folder / f"config{number}.yaml"
            config.write_text(f"{{spec: {{nameResolution: {{component: {component}, configuration: {{{trust}}}}}}}}}\n")
            more += ["--config", str(config)]
        environ = {"XDG_STATE_HOME": str(self._folder / f"state{number}")}
        if namespace:
            environ["NAMESPACE"] = namespace
        return await self.mesh.sidecar(app_id, app, *more, environ=environ, mdns=True)  # type: ignore[arg-type]

    def player(self) -> Player:
        """Return another program on this host."""
        player = Player(HERE)
        self._players.append(player)
        return player

    async def other_host(self, *says: tuple[str, int, str]) -> tuple[Process, str]:
        """Start a player on another host, and return it and its address.

        ``says``: App, port and address that it announces all the time; an empty address means its own.
        """
        number = next(_numbers)
        net, ours, theirs = f"10.78.{number}", f"v{number}a", f"v{number}b"
        packets = [told(app_id, port, address or f"{net}.2", pid) for pid, (app_id, port, address) in enumerate(says)]
        player = [sys.executable, "-m", "tests.support.mdns_player", f"{net}.2", *(packet.hex() for packet in packets)]
        process = self.mesh.process(f"host{number}", ["unshare", "-n", *player])
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
        self._links.append(ours)
        ip("addr", "add", f"{net}.1/24", "dev", ours)
        ip("link", "set", ours, "up")
        await until(lambda: not_here(process.pid))
        ip("link", "set", theirs, "netns", str(process.pid))
        inside = ["nsenter", "-t", str(process.pid), "-n", "ip"]
        subprocess.run([*inside, "addr", "add", f"{net}.2/24", "dev", theirs], check=True)
        subprocess.run([*inside, "link", "set", theirs, "up"], check=True)
        await process.says("listening")
        return process, f"{net}.2"

    def close(self) -> None:
        for player in self._players:
            player.close()
        for link in self._links:
            subprocess.run(["ip", "link", "del", link], check=False)


def not_here(pid: int) -> bool:
    """Whether a process is in a network of its own by now."""
    return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest_asyncio.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    try:
        yield made
    finally:
        await made.aclose()


@pytest_asyncio.fixture
async def net(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Net]:
    made = Net(mesh, tmp_path)
    try:
        yield made
    finally:
        made.close()


def question(app_id: str, *, unicast: bool = False) -> bytes:
    return render(Message(random.getrandbits(16), questions=[Question(service_name(app_id), PTR, unicast)]))


def told(app_id: str, port: int, address: str = HERE, pid: int = 1) -> bytes:
    """Return the announcement of a daprd on some host."""
    return render(Responder(Registration(app_id, "default", "other", pid, address, port)).announcement())


def is_about(app_id: str) -> Callable[[Heard], bool]:
    """Return what recognises an answer or announcement of an app."""
    return lambda heard: bool(
        heard.message.flags & 0x8000 and service_name(app_id)[0] in heard.packet and heard.message.answers[0].ttl
    )


def port_of(heard: Heard) -> int:
    records = [*heard.message.answers, *heard.message.additionals]
    return next(record.port for record in records if isinstance(record, Service))


async def timed(sidecar: Sidecar, app_id: str) -> tuple[int, str, float]:
    """Call an app; return status, body and seconds."""
    began = time.monotonic()
    answer = await sidecar.call(app_id, "x")
    return answer.status, answer.body.decode(), time.monotonic() - began


@pytest.mark.rule("N-7", "N-15", "N-18", "N-20", "N-22", "N-23", "N-26")
@pytest.mark.parametrize("component", ["", "mdns"])
async def test_two_sidecars_find_each_other_both_ways(component: str, net: Net) -> None:
    one, two = await net.callee("one"), await net.sidecar("two", await net.mesh.app(echo), component=component)

    assert (await timed(two, "one"))[:2] == (200, "one")
    assert (await timed(one, "two"))[0] == 200
    assert (await timed(two, "one.default"))[:2] == (200, "one")


@pytest.mark.rule("N-26", "N-29")
async def test_an_unknown_app_costs_a_second_once_and_is_told_in_daprds_words(net: Net) -> None:
    caller = await net.sidecar("caller")

    (status, body, first_s), (_, _, second_s) = await timed(caller, "nobody"), await timed(caller, "nobody")

    assert (status, body.count("failed to invoke, id: nobody, err: couldn't find service: nobody")) == (500, 1)
    assert 0.9 < first_s < 1.9
    assert second_s < 0.5
    answer = await caller.call("nobody", "x")
    assert answer.header("tieline-hint") == "asked: local registry, mDNS; known now: caller"


@pytest.mark.rule("N-19", "N-21", "N-55")
async def test_another_program_hears_probes_announcements_answers_and_the_goodbye(net: Net) -> None:
    player = net.player()
    callee = await net.callee()
    announced = await player.hears(is_about("callee"))
    await player.hears(lambda heard: heard.packet == announced.packet and heard is not announced)
    player.send(question("callee"))
    answer = await player.hears(lambda heard: bool(heard.message.flags & 0x0400))
    callee.signal(signal.SIGTERM)
    await callee.wait()
    goodbye = await player.hears(lambda heard: heard.message.answers != [] and not heard.message.answers[0].ttl)

    ours = [heard for heard in player.heard if b"callee" in heard.packet]
    kinds = ["".join(map(str, (len(h.message.questions), len(h.message.answers)))) for h in ours]
    assert kinds == ["10", "10", "05", "05", "01", "05"]
    assert {heard.hops for heard in ours} == {1}
    assert {heard.sender for heard in ours} == {(HERE, 5353)}
    for heard in (announced, answer, goodbye):
        assert port_of(heard) == callee.internal
    host = socket.gethostname().encode()
    assert announced.message.answers[4] == Address((*host.split(b"."), b"local"), 120, "127.0.0.1", True)


@pytest.mark.rule("N-6")
def test_a_second_address_of_an_interface_is_seen_too() -> None:
    assert HERE in interface_addresses()
    assert is_own_address(HERE)


@pytest.mark.rule("N-14", "N-23")
async def test_a_daprd_that_announces_the_address_of_this_host_is_found(net: Net) -> None:
    """Here it is a sidecar that listens everywhere, and whose records another program speaks."""
    callee = await net.callee("daprd", "--no-mdns", "--dapr-internal-grpc-listen-address", "0.0.0.0")
    player = net.player()
    player.answers = [told("daprd", callee.internal)]
    caller = await net.sidecar("caller")

    assert (await timed(caller, "daprd"))[:2] == (200, "daprd")


async def test_an_answer_that_points_to_another_app_calls_nobody(net: Net) -> None:
    callee = await net.callee()
    player = net.player()
    player.answers = [told("wanted", callee.internal, "127.0.0.1"), told("wanted", 9, "127.0.0.1", 2)]
    caller = await net.sidecar("caller")

    status, body, took_s = await timed(caller, "wanted")

    assert status == 500
    assert "callee" not in body or "not of wanted" in body
    assert took_s < 15


async def test_an_app_that_stops_is_missed_and_one_that_comes_back_is_found(net: Net) -> None:
    callee = await net.callee()
    caller = await net.sidecar("caller")
    assert (await timed(caller, "callee"))[0] == 200

    callee.signal(signal.SIGTERM)
    await callee.wait()
    status, body, _ = await timed(caller, "callee")
    assert (status, "couldn't find service: callee" in body) == (500, True)

    await net.callee()

    async def is_found() -> bool:
        return (await timed(caller, "callee"))[0] == 200

    await until(is_found)


@pytest.mark.rule("N-51", "N-53")
async def test_the_app_of_another_namespace_is_only_found_by_its_namespace(net: Net) -> None:
    await net.callee("callee", namespace="blue")
    caller, blue = await net.sidecar("caller"), await net.sidecar("caller", namespace="blue")

    assert (await timed(caller, "callee"))[0] == 500
    assert (await timed(caller, "callee.blue"))[0] == 200
    assert (await timed(blue, "callee"))[0] == 200
    assert (await timed(blue, "callee.default"))[0] == 500


async def test_the_usual_namespace_is_not_reached_from_another_by_the_bare_id(net: Net) -> None:
    await net.callee("callee")
    blue = await net.sidecar("caller", namespace="blue")

    assert (await timed(blue, "callee"))[0] == 500
    assert (await timed(blue, "callee.default"))[0] == 200


async def test_another_host_hears_nothing_of_us_and_is_not_believed(net: Net) -> None:
    callee = await net.callee("callee", "--dapr-internal-grpc-listen-address", "127.0.0.1")
    at = callee.internal  # what it could be called by, were the other host believed
    other, _ = await net.other_host(("wanted", at, "127.0.0.1"), ("wanted", at, HERE), ("wanted", at, ""))
    caller = await net.callee("quiet")
    assert (await timed(caller, "callee"))[0] == 200

    status, body, _ = await timed(caller, "wanted")

    assert (status, "couldn't find service: wanted" in body) == (500, True)
    trusting = await net.sidecar("trusting", component="mdns", trust="trustNetwork: true")
    assert (await timed(trusting, "loud"))[0] == 500
    await other.says(b"\x04loud".hex())  # so it does hear what is sent to the network
    for word in (b"\x06callee", b"\x05quiet", b"\x06wanted", b"\x08trusting"):
        assert word.hex() not in other.log()


async def test_another_host_is_believed_if_the_network_is_trusted_but_not_for_our_loopback(net: Net) -> None:
    _, address = await net.other_host(("far", 9, ""), ("near", 9, "127.0.0.1"))
    trusting = await net.sidecar("trusting", component="mdns", trust="trustNetwork: true")

    assert f"dial tcp {address}:9: connect: connection refused" in (await timed(trusting, "far"))[1]
    assert "couldn't find service: near" in (await timed(trusting, "near"))[1]


@pytest.mark.rule("N-6", "N-55")
async def test_what_listens_on_the_network_is_announced_to_it(net: Net) -> None:
    other, address = await net.other_host()
    await net.callee("open", "--dapr-internal-grpc-listen-address", "0.0.0.0")

    await other.says(b"\x04open".hex())

    line = next(line for line in other.log().splitlines() if b"\x04open".hex() in line)
    assert line.startswith(f"1 {address[:-1]}1 ")


async def test_without_multicast_nothing_waits_and_nothing_is_said(net: Net) -> None:
    ip("link", "set", "lo", "multicast", "off")
    try:
        callee = await net.mesh.sidecar("callee", await net.mesh.app(echo), mdns=True)
        caller = await net.mesh.sidecar("caller", mdns=True)

        status, _, took_s = await timed(caller, "nobody")
        assert (status, took_s < 0.8) == (500, True)
        assert (await timed(caller, "callee"))[0] == 200
        for sidecar in (callee, caller):
            assert "scope=tieline.names" not in sidecar.log()
            assert "level=error" not in sidecar.log()
    finally:
        ip("link", "set", "lo", "multicast", "on")


async def test_a_name_in_the_registry_never_waits_for_mdns(net: Net) -> None:
    await net.mesh.sidecar("callee", await net.mesh.app(echo))
    caller = await net.mesh.sidecar("caller", mdns=True)
    player = net.player()

    status, _, took_s = await timed(caller, "callee")

    assert (status, took_s < 0.8) == (200, True)
    assert [heard for heard in player.heard if heard.message.questions and not heard.message.authorities] == []


async def test_without_mdns_its_port_is_not_opened(net: Net) -> None:
    sidecar = await net.mesh.sidecar("caller")

    fds = Path(f"/proc/{sidecar.pid}/fd")
    sockets = {str((fds / name).readlink()) for name in [*fds.iterdir()]}
    opened = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    assert [row for row in opened if row[1].endswith(":14E9") and f"socket:[{row[9]}]" in sockets] == []


async def test_a_flood_of_nonsense_neither_stops_a_sidecar_nor_blinds_it(net: Net) -> None:
    player = net.player()
    await net.callee()
    caller = await net.sidecar("caller")
    chance = random.Random(7)
    good = [question("callee"), told("callee", 9), told("other", 9), question("caller")]

    for number in range(3000):
        packet = bytearray(chance.choice(good))
        for _ in range(chance.randrange(6)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        player.send(bytes(packet) if number % 10 else chance.randbytes(chance.randrange(9000)))
        if number % 50 == 0:
            await asyncio.sleep(0)  # read what they answer
    status, _, took_s = await timed(caller, "callee")

    assert (status, took_s < 5) == (200, True)


async def test_many_sidecars_share_the_port(net: Net) -> None:
    names = [f"app{number}" for number in range(4)]
    sidecars = await asyncio.gather(*(net.callee(name) for name in names))
    player = net.player()

    for caller in sidecars:
        for name in names:
            assert (await timed(caller, name))[:2] == (200, name)
    player.send(question("app3", unicast=True), GROUP)
    assert port_of(await player.hears(is_about("app3"))) == sidecars[3].internal
