"""The measurements: CPU a call and a message, added latency, memory, start-up time, most calls a second.

Each takes the ``Bench``, lets ours and Envoy take turns, so that a slow minute of the machine hits both, and returns
table rows and the raw figures behind them.
"""

import functools
import http.client
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import uvloop

from bench import envoy, procfs
from bench.errors import BenchError
from bench.load import ClosedLoop, Messages, OpenLoop, Outcome, Schedule, Work, no_garbage_collection
from bench.processes import ANSWER_BYTES, START_TIMEOUT_S, House, Maker, Pair, Process, get
from bench.report import Budget, Row, median, percentile
from bench.rpc_load import Rpcs, invocations, open_lanes

T = TypeVar("T")

CONNECTIONS = (32, 4, 1)
MESSAGE_CONNECTIONS = (32, 1)
RATE = 1000
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
MIB = 1 << 20
UPLOAD_CHUNK = b"u" * (64 << 10)
TRANSFER_TIMEOUT_S = 60
START_POLL_S = 0.001
# Others' work changes how calls bunch, and so even the cost a call.
QUIET_CPUS = 0.1

WITHIN_ENVOY = Budget(1.2, of_envoy=True)
MESSAGE_WITHIN_ENVOY = Budget(1.3, of_envoy=True)
INVOKE_WITHIN_ENVOY = Budget(1.8, of_envoy=True)
IDLE_MIB = Budget(45.0)
GROWTH_MIB = Budget(16.0)
START_S = Budget(0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long each measurement takes; more is steadier."""

    calls: int = 20_000
    cpu_rounds: int = 5
    latency_rounds: int = 5
    latency_s: float = 20.0
    latency_warm_up_s: float = 1.0
    idle_s: float = 10.0
    body_mib: int = 256
    starts: int = 10
    max_rounds: int = 3
    max_s: int = 5
    stream_messages: int = 200_000

    @property
    def warm_up_calls(self) -> int:
        return self.calls // 10


QUICK = Effort(
    calls=2_000,
    cpu_rounds=3,
    latency_rounds=1,
    latency_s=3.0,
    latency_warm_up_s=0.5,
    idle_s=1.0,
    body_mib=32,
    starts=3,
    max_rounds=1,
    max_s=1,
    stream_messages=20_000,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement works with: the processes, the two kinds of sidecar, the effort, and where errors go."""

    house: House
    makers: Sequence[Maker]
    effort: Effort
    say: Callable[[str], None]
    errors: list[str]

    def count_errors(self, where: str, outcome: Outcome) -> None:
        """Remember calls that got a wrong answer: they spoil the figures, and the bench must say so."""
        for problem, times in outcome.errors.items():
            self.errors.append(f"{where}: {times} x {problem}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Table rows and the raw figures behind them."""

    rows: list[Row]
    raw: Any


def in_turn(items: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Yield every item once a round, each round beginning with another one."""
    for number in range(rounds):
        shift = number % len(items)
        for item in [*items[shift:], *items[:shift]]:
            yield number, item


class Bystanders:
    """Watches, from construction on, how much CPU programs take that are no part of the bench."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.started = time.monotonic_ns()
        self.others_before = procfs.machine_cpu_ns() - house.cpu_ns()

    def cpus(self) -> float:
        """Return the CPUs that others kept busy on average."""
        others = procfs.machine_cpu_ns() - self.house.cpu_ns() - self.others_before
        return max(others / (time.monotonic_ns() - self.started), 0.0)


def bystander_note(cpus: float) -> str:
    """Return the warning for figures taken beside so much other work, or ""."""
    if cpus <= QUIET_CPUS:
        return ""
    return f"other programs kept {cpus:.2f} CPUs busy meanwhile: measure again on a quiet machine"


# ── CPU a call ──


def cpu(bench: Bench) -> Measured:
    """CPU of caller and callee for a fixed number of calls, at 32, 4 and 1 connections."""
    pairs = [bench.house.pair(maker) for maker in bench.makers]
    rows: list[Row] = []
    raw: list[dict[str, Any]] = []
    for connections in CONNECTIONS:
        bench.say(f"cpu: {connections} connections")
        bystanders = Bystanders(bench.house)
        rounds = [
            uvloop.run(_cpu_round(bench, pair, pair.work, connections))
            for _, pair in in_turn(pairs, bench.effort.cpu_rounds)
        ]
        busy = bystanders.cpus()
        raw.append({"connections": connections, "rounds": rounds, "bystander_cpus": busy})
        rows += _cpu_rows("CPU of the pair", "us/call", WITHIN_ENVOY, rounds, connections, bystander_note(busy))
    return Measured(rows, raw)


def websocket(bench: Bench) -> Measured:
    """CPU of caller and callee for a fixed number of WebSocket messages that come back, at 32 and 1 connections."""
    pairs = [bench.house.pair(maker) for maker in bench.makers]
    rows: list[Row] = []
    raw: list[dict[str, Any]] = []
    for connections in MESSAGE_CONNECTIONS:
        bench.say(f"websocket: {connections} connections")
        bystanders = Bystanders(bench.house)
        rounds = []
        for _, pair in in_turn(pairs, bench.effort.cpu_rounds):
            work = Messages(port=pair.work.port, path=f"{envoy.CALL_PREFIX}ws", answer_bytes=ANSWER_BYTES)
            rounds.append(uvloop.run(_cpu_round(bench, pair, work, connections)))
        busy = bystanders.cpus()
        raw.append({"connections": connections, "rounds": rounds, "bystander_cpus": busy})
        rows += _cpu_rows(
            "WebSocket echo", "us/message", MESSAGE_WITHIN_ENVOY, rounds, connections, bystander_note(busy)
        )
    return Measured(rows, raw)


def grpc_proxy(bench: Bench) -> Measured:
    """CPU of caller and callee for a fixed number of unary RPCs: 32 at a time on four connections, 4 and 1 on one."""
    pairs = [bench.house.rpc_pair(maker) for maker in bench.makers]
    rows: list[Row] = []
    raw: list[dict[str, Any]] = []
    for at_a_time in CONNECTIONS:
        bench.say(f"grpc-proxy: {at_a_time} at a time")
        bystanders = Bystanders(bench.house)
        rounds = [
            uvloop.run(_cpu_round(bench, pair, pair.work, at_a_time))
            for _, pair in in_turn(pairs, bench.effort.cpu_rounds)
        ]
        busy = bystanders.cpus()
        raw.append({"at_a_time": at_a_time, "rounds": rounds, "bystander_cpus": busy})
        rows += _pair_rows(f"proxied RPC, {at_a_time} at a time", "us/call", WITHIN_ENVOY, rounds, bystander_note(busy))
    return Measured(rows, raw)


def grpc_invoke(bench: Bench) -> Measured:
    """CPU of our pair a call by ``InvokeService``, which Envoy has not: beside it stands a call that Envoy proxies."""
    pairs = [bench.house.rpc_pair(maker) for maker in bench.makers]
    at_a_time = CONNECTIONS[0]
    bench.say(f"grpc-invoke: {at_a_time} at a time")
    bystanders = Bystanders(bench.house)
    rounds = []
    for _, pair in in_turn(pairs, bench.effort.cpu_rounds):
        work = pair.work if pair.name == "envoy" else invocations(pair.work.port, "callee")
        rounds.append(uvloop.run(_cpu_round(bench, pair, work, at_a_time)))
    busy = bystanders.cpus()
    label = f"InvokeService, {at_a_time} at a time"
    rows = _pair_rows(label, "us/call", INVOKE_WITHIN_ENVOY, rounds, bystander_note(busy))
    return Measured(rows, {"at_a_time": at_a_time, "rounds": rounds, "bystander_cpus": busy})


def grpc_stream(bench: Bench) -> Measured:
    """CPU a message of one long answer, and how far memory rises meanwhile; each round is a fresh pair."""
    bench.say(f"grpc-stream: {bench.effort.stream_messages} messages")
    bystanders = Bystanders(bench.house)
    rounds = []
    for _, maker in in_turn(bench.makers, bench.effort.max_rounds):
        pair = bench.house.start_rpc_pair(maker)
        try:
            work = pair.work
            assert isinstance(work, Rpcs)
            work = replace(work, messages=bench.effort.stream_messages)
            figures: dict[str, Any] = {}

            def transfer(pair: Pair = pair, work: Rpcs = work, figures: dict[str, Any] = figures) -> None:
                figures.update(uvloop.run(_cpu_round(bench, pair, work, 1, calls=1, messages=work.messages)))

            figures["growth_mib"] = max(_growth_mib(pair, transfer).values())
        finally:
            pair.stop()
        rounds.append(figures)
    busy = bystanders.cpus()
    rows = _pair_rows("proxied stream", "us/message", WITHIN_ENVOY, rounds, bystander_note(busy))
    growth = {name: median([one["growth_mib"] for one in rounds if one["pair"] == name]) for name in ("ours", "envoy")}
    rows.append(
        Row(work="  memory", unit="MiB", budget=GROWTH_MIB, ours=growth["ours"], envoy=growth["envoy"], note="")
    )
    return Measured(rows, {"rounds": rounds, "bystander_cpus": busy})


async def _cpu_round(
    bench: Bench, pair: Pair, work: Work, connections: int, *, calls: int | None = None, messages: int = 1
) -> dict[str, Any]:
    """Measure one round; what it costs is told by the message where a call has several of them."""
    load = ClosedLoop()
    calls = calls or bench.effort.calls
    try:
        if isinstance(work, Rpcs):
            load.use(await open_lanes(work, load, connections))
        else:
            await load.open(work, connections)
        await load.run(1 if messages > 1 else bench.effort.warm_up_calls)
        with no_garbage_collection():
            caller_before, callee_before = pair.cpu_ns()
            outcome = await load.run(calls)
            caller_after, callee_after = pair.cpu_ns()
    finally:
        load.close()
    bench.count_errors(f"cpu, {pair.name}, {connections} connections", outcome)
    caller_us = (caller_after - caller_before) / calls / messages / 1000
    callee_us = (callee_after - callee_before) / calls / messages / 1000
    return {
        "pair": pair.name,
        "connections": connections,
        "caller_us": caller_us,
        "callee_us": callee_us,
        "pair_us": caller_us + callee_us,
        "calls_per_s": calls * messages / outcome.seconds,
    }


def _cpu_rows(
    what: str, unit: str, limit: Budget, rounds: Sequence[dict[str, Any]], connections: int, note: str
) -> list[Row]:
    return _pair_rows(f"{what}, {connections} connection{'s' * (connections > 1)}", unit, limit, rounds, note)


def _pair_rows(what: str, unit: str, limit: Budget, rounds: Sequence[dict[str, Any]], note: str) -> list[Row]:
    def row(work: str, key: str, budget: Budget | None) -> Row:
        figures = {name: median([one[key] for one in rounds if one["pair"] == name]) for name in ("ours", "envoy")}
        return Row(work=work, unit=unit, budget=budget, ours=figures["ours"], envoy=figures["envoy"], note=note)

    return [
        row(what, "pair_us", limit),
        row("  caller", "caller_us", None),
        row("  callee", "callee_us", None),
    ]


# ── latency ──


def latency(bench: Bench) -> Measured:
    """What a pair adds to a call straight to the app, at a fixed rate, whatever the answers do."""
    direct = Work(port=bench.house.app_port, path=f"/bytes/{ANSWER_BYTES}", answer_bytes=ANSWER_BYTES)
    targets = [("direct", direct)]
    targets += [(maker.name, bench.house.pair(maker).work) for maker in bench.makers]
    rounds: list[dict[str, Any]] = []
    bystanders = Bystanders(bench.house)
    for number, (name, work) in in_turn(targets, bench.effort.latency_rounds):
        bench.say(f"latency: {name}, run {number + 1} of {bench.effort.latency_rounds}")
        figures = uvloop.run(_latency_round(bench, name, work))
        rounds.append({"target": name, "round": number, **figures})
    busy = bystanders.cpus()
    return Measured(latency_rows(rounds, bystander_note(busy)), {"rounds": rounds, "bystander_cpus": busy})


async def _latency_round(bench: Bench, name: str, work: Work) -> dict[str, float]:
    effort = bench.effort
    load = OpenLoop(Schedule(rate=RATE, seconds=effort.latency_s, warm_up_s=effort.latency_warm_up_s))
    try:
        await load.open(work)
        with no_garbage_collection():
            outcome = await load.run()
    finally:
        load.close()
    bench.count_errors(f"latency, {name}", outcome)
    ordered = sorted(load.latencies_ns)
    return {label: percentile(ordered, share) / 1e6 for label, share in PERCENTILES.items()}


def latency_rows(rounds: Sequence[dict[str, Any]], note: str) -> list[Row]:
    """Subtract, within each round, the direct call's figure; take the median over the rounds."""
    base = {one["round"]: one for one in rounds if one["target"] == "direct"}
    rows = []
    for label in PERCENTILES:
        figures = {
            name: median([one[label] - base[one["round"]][label] for one in rounds if one["target"] == name])
            for name in ("ours", "envoy")
        }
        budget = WITHIN_ENVOY if label in ("p50", "p99") else None
        work = f"added latency at {RATE}/s, {label}"
        ours, theirs = figures["ours"], figures["envoy"]
        rows.append(Row(work=work, unit="ms", budget=budget, ours=ours, envoy=theirs, note=note))
    return rows


# ── memory ──


def memory(bench: Bench) -> Measured:
    """VmRSS some seconds after one call, and how far it rises while one long body passes, each way."""
    idle = _idle(bench)
    rows = [idle.rows[0]]
    raw: dict[str, Any] = {"idle": idle.raw}
    for label, transfer in _transfers().items():
        measured = _growth(bench, f"{bench.effort.body_mib} MiB {label}", transfer)
        rows += measured.rows
        raw[label] = measured.raw
    return Measured(rows, raw)


def _idle(bench: Bench) -> Measured:
    pairs = [bench.house.start_pair(maker) for maker in bench.makers]
    bench.say(f"memory: {bench.effort.idle_s:g} s of idling")
    time.sleep(bench.effort.idle_s)
    sides = {
        pair.name: {side: procfs.resident_bytes(pid) / MIB for side, pid in _sides(pair).items()} for pair in pairs
    }
    for pair in pairs:
        pair.stop()
    work = f"VmRSS {bench.effort.idle_s:g} s after a call, the larger"
    return Measured([_row_of_sides(work, IDLE_MIB, sides, [])], sides)


def _growth(bench: Bench, label: str, transfer: Callable[[int, int], None]) -> Measured:
    bench.say(f"memory: {label}")
    sides: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for maker in bench.makers:
        # Fresh processes, or memory kept from the last body would hide the need of this one.
        pair = bench.house.start_pair(maker, long_bodies=True)
        try:
            sides[maker.name] = _growth_mib(pair, functools.partial(transfer, pair.work.port, bench.effort.body_mib))
        except BenchError as error:
            notes.append(f"{maker.name}: {error}")
        finally:
            pair.stop()
    return Measured([_row_of_sides(f"growth, {label}, the larger", GROWTH_MIB, sides, notes)], sides)


def _row_of_sides(work: str, budget: Budget, sides: dict[str, dict[str, float]], notes: list[str]) -> Row:
    larger = {name: max(figures.values()) for name, figures in sides.items()}
    ours, theirs = larger.get("ours"), larger.get("envoy")
    return Row(work=work, unit="MiB", ours=ours, envoy=theirs, budget=budget, note="; ".join(notes))


def _growth_mib(pair: Pair, transfer: Callable[[], None]) -> dict[str, float]:
    before = {side: procfs.resident_bytes(pid) for side, pid in _sides(pair).items()}
    for pid in _sides(pair).values():
        procfs.reset_peak(pid)
    transfer()
    return {side: (procfs.peak_bytes(pid) - before[side]) / MIB for side, pid in _sides(pair).items()}


def _sides(pair: Pair) -> dict[str, int]:
    return {"caller": pair.caller.pid, "callee": pair.callee.pid}


def _transfers() -> dict[str, Callable[[int, int], None]]:
    found: dict[str, Callable[[int, int], None]] = {"chunked up": upload, "chunked down": download}
    if shutil.which("curl") is not None:
        found |= {"HTTP/2 up": upload_by_curl, "HTTP/2 down": download_by_curl}
    return found


def upload(port: int, mib: int) -> None:
    """Send a chunked body of so many MiB and check that the app counted all of it."""

    def send(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        chunks = (UPLOAD_CHUNK for _ in range(mib * MIB // len(UPLOAD_CHUNK)))
        headers = {"Transfer-Encoding": "chunked"}
        connection.request("POST", f"{envoy.CALL_PREFIX}sink", chunks, headers, encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, answer.read()

    _expect_count(_transfer(port, send), mib)


def download(port: int, mib: int) -> None:
    """Read a chunked body of so many MiB and count it."""

    def receive(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        connection.request("GET", f"{envoy.CALL_PREFIX}stream/{mib}")
        answer = connection.getresponse()
        count = 0
        while piece := answer.read(64 << 10):
            count += len(piece)
        return answer.status, b"%d" % count

    _expect_count(_transfer(port, receive), mib)


def _transfer(port: int, body: Callable[[http.client.HTTPConnection], tuple[int, bytes]]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TRANSFER_TIMEOUT_S)
    try:
        return body(connection)
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"the body did not pass: {type(error).__name__}: {error}") from error
    finally:
        connection.close()


def upload_by_curl(port: int, mib: int) -> None:
    """The same over one prior-knowledge HTTP/2 stream; the body has no declared length."""
    with subprocess.Popen(["head", "-c", str(mib * MIB), "/dev/zero"], stdout=subprocess.PIPE) as source:
        status, body = _curl(port, "sink", ["-X", "POST", "-T", "-"], stdin=source.stdout)
    _expect_count((status, body), mib)


def download_by_curl(port: int, mib: int) -> None:
    """The same over one prior-knowledge HTTP/2 stream."""
    status, _, count = _curl_raw(port, f"stream/{mib}", ["-o", "/dev/null"])
    _expect_count((status, count), mib)


def _curl(port: int, path: str, options: Sequence[str], stdin: Any = None) -> tuple[int, bytes]:
    status, body, _ = _curl_raw(port, path, options, stdin)
    return status, body


def _curl_raw(port: int, path: str, options: Sequence[str], stdin: Any = None) -> tuple[int, bytes, bytes]:
    url = f"http://127.0.0.1:{port}{envoy.CALL_PREFIX}{path}"
    fixed = ["curl", "-sS", "--http2-prior-knowledge", "--max-time", str(TRANSFER_TIMEOUT_S)]
    told = ["-w", "\n%{http_code} %{http_version} %{size_download}", url]
    done = subprocess.run([*fixed, *options, *told], stdin=stdin or subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise BenchError(done.stderr.decode(errors="replace").strip() or f"curl ended with {done.returncode}")
    body, _, tail = done.stdout.rpartition(b"\n")
    status, version, count = tail.split()
    if version != b"2":
        raise BenchError(f"curl spoke HTTP/{version.decode()} instead of HTTP/2")
    return int(status), body, count


def _expect_count(answer: tuple[int, bytes], mib: int) -> None:
    status, body = answer
    if status != 200 or body != b"%d" % (mib * MIB):
        raise BenchError(f"the body did not pass whole: {status} {body[:200].decode(errors='replace')}")


# ── start-up time ──


def start(bench: Bench) -> Measured:
    """Time from the start of the process until the caller says that it is ready."""
    seconds: dict[str, list[float]] = {maker.name: [] for maker in bench.makers}
    notes: list[str] = []
    failed: set[str] = set()
    bench.say(f"start: {bench.effort.starts} starts each")
    # One start before the count: the file cache is to be warm.
    for number, maker in in_turn(bench.makers, bench.effort.starts + 1):
        if maker.name in failed:
            continue
        try:
            took = _start_once(bench.house, maker)
        except BenchError as error:
            failed.add(maker.name)
            notes.append(f"{maker.name}: {error}")
            continue
        if number > 0:
            seconds[maker.name].append(took)
    figures = {name: median(values) for name, values in seconds.items()}
    row = Row(
        work="start until healthz/outbound is 204",
        unit="s",
        ours=figures.get("ours"),
        envoy=figures.get("envoy"),
        budget=START_S,
        note="; ".join(notes),
    )
    return Measured([row], seconds)


def _start_once(house: House, maker: Maker) -> float:
    folder = house.new_folder()
    ports = house.new_ports()
    command = maker.command("caller", ports, folder, long_bodies=False)
    started = time.monotonic()
    process = house.start(f"the caller of {maker.name}", command, folder, maker.environment(folder))
    try:
        _wait_for_health(process, ports["caller_http"])
        return time.monotonic() - started
    finally:
        process.stop()


def _wait_for_health(process: Process, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    seen = "never"
    while time.monotonic() < deadline:
        process.check_alive()
        try:
            status, _ = get(port, envoy.HEALTH_PATH, timeout_s=1.0)
        except (OSError, http.client.HTTPException) as error:
            seen = type(error).__name__
        else:
            if status == 204:
                return
            seen = str(status)
        time.sleep(START_POLL_S)
    raise BenchError(f"{process.name} is not healthy after {START_TIMEOUT_S:g} s: {envoy.HEALTH_PATH} gives {seen}")


# ── most calls a second ──


def maximum(bench: Bench) -> Measured:
    """Calls a second that `wrk` gets through a pair on 32 connections, both cores busy."""
    work = "most calls/s, 32 connections (wrk)"
    missing = install_wrk(bench.say)
    if missing:
        return Measured([Row(work=work, unit="calls/s", note=f"skipped: {missing}")], None)
    rates: dict[str, list[float]] = {maker.name: [] for maker in bench.makers}
    for number, maker in in_turn(bench.makers, bench.effort.max_rounds):
        bench.say(f"max: {maker.name}, run {number + 1} of {bench.effort.max_rounds}")
        rates[maker.name].append(_wrk(bench, bench.house.pair(maker)))
    figures = {name: median(values) for name, values in rates.items()}
    row = Row(work=work, unit="calls/s", ours=figures.get("ours"), envoy=figures.get("envoy"))
    return Measured([row], rates)


def install_wrk(say: Callable[[str], None]) -> str:
    """Make sure that `wrk` is there; return why it is not, or ""."""
    if shutil.which("wrk") is not None:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "wrk is not installed (`apt-get install wrk`, as root)"
    say("max: installing wrk")
    done = subprocess.run(["apt-get", "install", "-y", "-q", "wrk"], capture_output=True)
    if done.returncode != 0:
        return "`apt-get install wrk` failed; try `apt-get update` first"
    return ""


def _wrk(bench: Bench, pair: Pair) -> float:
    url = f"http://127.0.0.1:{pair.work.port}{pair.work.path}"
    command = ["wrk", "-t", "1", "-c", "32", "-d", f"{bench.effort.max_s}s", url]
    done = subprocess.run(command, capture_output=True, text=True)
    return parse_wrk(done.stdout, lambda problem: bench.errors.append(f"max, {pair.name}: {problem}"))


def parse_wrk(output: str, on_problem: Callable[[str], None]) -> float:
    """Return the calls a second in the report of `wrk`; what it says of errors goes to ``on_problem``."""
    for line in output.splitlines():
        if "Non-2xx" in line or "Socket errors" in line:
            on_problem(line.strip())
    rate = re.search(r"^Requests/sec:\s*([\d.]+)", output, re.MULTILINE)
    if rate is None:
        raise BenchError(f"wrk gave no rate: {output.strip()[-200:]}")
    return float(rate[1])


MEASUREMENTS: dict[str, Callable[[Bench], Measured]] = {
    "cpu": cpu,
    "websocket": websocket,
    "grpc-proxy": grpc_proxy,
    "grpc-invoke": grpc_invoke,
    "grpc-stream": grpc_stream,
    "latency": latency,
    "memory": memory,
    "start": start,
    "max": maximum,
}
