"""Calls while sidecars and apps die, leave and come back, 200 a second; ids show what ran."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import pytest

from tests.support.app import App
from tests.support.load import Ledger, Load, Outcome
from tests.support.mesh import START_S, Mesh, Sidecar, until

RATE = 200.0
ROUNDS = int(os.environ.get("TIELINE_E2E_ROUNDS", "2"))
"""How often each thing is killed; more by hand."""
WARM = (
    "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1});"
    "import tieline.cli.sidecar, tieline.sidecar; from tieline.cli.main import main; print('warm', flush=True);"
    "signal.sigwait({signal.SIGUSR1}); signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1}); sys.exit(main())"
)
"""A program that is a sidecar from SIGUSR1 on: it comes while calls are tried again, however busy the machine is."""


async def warm(mesh: Mesh, app: App, *, port: int = 0, internal: int = 0) -> Sidecar:
    """Return the process of a callee's sidecar that has only to be told to begin."""
    made = await mesh.sidecar("callee", app, port=port, internal=internal, main=["-c", WARM, "sidecar"], wait=None)
    await made.says("warm", START_S)
    return made


async def take_over(sidecar: Sidecar) -> Sidecar:
    """Let a warm sidecar begin."""
    sidecar.signal(signal.SIGUSR1)
    await sidecar.healthy()
    return sidecar


def assert_nothing_ran_twice_or_was_made_up(outcome: Outcome, ledger: Ledger) -> None:
    """POSTs run at most once, and none is answered that did not run."""
    for number in outcome.succeeded["POST"]:
        assert ledger.runs[number] == 1
    for number, _, _ in outcome.failed["POST"]:
        assert ledger.runs[number] <= 1


@pytest.mark.rule("H-89", "H-90")
async def test_when_the_callees_sidecar_is_killed_gets_succeed_and_posts_never_run_twice(mesh: Mesh) -> None:
    ledger = Ledger()
    app = await mesh.app(ledger)
    callee = await mesh.sidecar("callee", app)
    caller = await mesh.sidecar("caller")
    load = Load(caller, "callee", rate=RATE)

    for _ in range(ROUNDS):
        following = await warm(mesh, app, port=callee.port, internal=callee.internal)
        await load.done(100)
        callee.kill()
        callee = await take_over(following)
        await load.done(300)
    outcome = await load.stop()

    print(
        f"kills: {ROUNDS}, GET ok {len(outcome.succeeded['GET'])} failed {len(outcome.failed['GET'])}, POST ok "
        f"{len(outcome.succeeded['POST'])} failed {len(outcome.failed['POST'])}, slowest {outcome.slowest_s:.2f} s"
    )
    assert not outcome.failed["GET"]
    assert_nothing_ran_twice_or_was_made_up(outcome, ledger)
    assert all("-cause" in text or "Unavailable" in text for _, _, text in outcome.failed["POST"])


@pytest.mark.rule("H-142", "H-143", "H-144", "H-148")
@pytest.mark.parametrize("new_one", ["before", "after"])
async def test_when_the_callees_sidecar_is_replaced_no_call_fails(mesh: Mesh, new_one: str) -> None:
    ledger = Ledger()
    app = await mesh.app(ledger)
    callee = await mesh.sidecar("callee", app)
    caller = await mesh.sidecar("caller")
    load = Load(caller, "callee", rate=RATE)

    codes = []
    for _ in range(ROUNDS):
        await load.done(100)
        old, following = callee, await warm(mesh, app)
        if new_one == "before":
            callee = await take_over(following)
            await load.done(50)
            old.signal(signal.SIGTERM)
        else:
            old.signal(signal.SIGTERM)
            callee = await take_over(following)
        codes.append(await old.wait())
        await load.done(150)
    outcome = await load.stop()

    print(
        f"{new_one}: {ROUNDS} rounds, ok {len(outcome.succeeded['GET'])}+{len(outcome.succeeded['POST'])}, failed "
        f"{outcome.failed['GET'][:3]} {outcome.failed['POST'][:3]}, slowest {outcome.slowest_s:.2f} s"
    )
    assert outcome.failed == {"GET": [], "POST": []}
    assert_nothing_ran_twice_or_was_made_up(outcome, ledger)
    assert codes == [0] * ROUNDS


async def test_when_the_app_is_replaced_behind_its_sidecar_no_call_fails(mesh: Mesh) -> None:
    """The listening socket stays open; the old process drains, the new one accepts."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    command = [sys.executable, "-m", "tests.support.app", str(listening.fileno())]
    app = mesh.process("app", command, [listening.fileno()])
    await app.says("listening")
    await mesh.sidecar("callee", listening.getsockname()[1])
    caller = await mesh.sidecar("caller")
    load = Load(caller, "callee", rate=RATE)

    for _ in range(ROUNDS):
        await load.done(150)
        new = mesh.process("app", command, [listening.fileno()])
        await new.says("listening")
        app.signal(signal.SIGTERM)
        await app.wait()
        app = new
        await load.done(150)
    outcome = await load.stop()
    listening.close()

    print(
        f"app: {ROUNDS} rounds, ok {len(outcome.succeeded['GET'])}+{len(outcome.succeeded['POST'])}, {outcome.failed}"
    )
    assert outcome.failed == {"GET": [], "POST": []}


@pytest.mark.rule("H-89")
async def test_when_one_of_two_instances_is_killed_no_call_waits_for_it_twice(mesh: Mesh) -> None:
    ledger, other = Ledger(), Ledger()
    dying = await mesh.sidecar("callee", await mesh.app(ledger))
    await mesh.sidecar("callee", await mesh.app(other))
    caller = await mesh.sidecar("caller")

    async def both_are_called() -> bool:
        await caller.call("callee", "run?id=warm")
        return bool(ledger.runs and other.runs)

    await until(both_are_called)
    load = Load(caller, "callee", rate=RATE)

    await load.done(100)
    dying.kill()
    await load.done(400)
    outcome = await load.stop()

    print(
        f"one of two: ok {len(outcome.succeeded['GET'])}+{len(outcome.succeeded['POST'])}, "
        f"failed {len(outcome.failed['GET'])}+{len(outcome.failed['POST'])}, slowest {outcome.slowest_s:.2f} s"
    )
    assert not outcome.failed["GET"]
    assert all(text for _, _, text in outcome.failed["POST"])
    # Only a POST that was at the dead one when it died may fail; those were sent before it was known.
    assert len(outcome.failed["POST"]) <= 4
    # A call that was lost there goes to the other after one pause of a second, and never back.
    assert outcome.slowest_s < 1.9


async def test_an_instance_that_is_down_costs_a_call_nothing_while_another_is_up(mesh: Mesh) -> None:
    """Nobody listens at the first address: the other is tried at once, not after a pause."""
    ledger = Ledger()
    app = await mesh.app(ledger)
    dead = await mesh.sidecar("callee", app)
    await mesh.sidecar("callee", app)
    caller = await mesh.sidecar("caller")
    dead.kill()

    began = asyncio.get_running_loop().time()
    answers = [await caller.call("callee", f"run?id={number}", "POST", body=b"x") for number in range(6)]

    assert [answer.status for answer in answers] == [200] * 6
    assert asyncio.get_running_loop().time() - began < 0.9
