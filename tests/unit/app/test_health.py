"""When an app counts as healthy, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from tieline.app.health import AppHealth, Prober, probe_target
from tieline.config.settings import HealthChecks
from tieline.errors import AppUnreachable, TielineError
from tieline.model import Cause, Hop

REFUSED = AppUnreachable('Get "http://127.0.0.1:1/healthz": dial tcp 127.0.0.1:1: connect: connection refused')
LATE = TielineError('Get "http://127.0.0.1:1/healthz": context deadline exceeded', cause=Cause.TIMEOUT, hop=Hop.APP)


class Over(Exception):
    """The last answer of the script was taken."""


class FakeApp:
    """An app that answers probes by a script, on a clock that only moves when it or a pause says so.

    Attributes:
        asked: When each probe came.
        let_through: Whether calls would be let through, after each probe.
        log: The listener's ledger.
    """

    def __init__(self, answers: Sequence[int | TielineError], takes_s: float = 0.0) -> None:
        self._answers = list(answers)
        self._takes_s = takes_s
        self.now = 100.0
        self.unhealthy: Callable[[], TielineError] | None = None
        self.asked: list[float] = []
        self.targets: list[bytes] = []
        self.let_through: list[bool] = []
        self.log: list[tuple[int, float]] = []

    async def probe(self, target: bytes, timeout_s: float) -> int:
        self.asked.append(self.now)
        self.targets.append(target)
        self.now += self._takes_s
        answer = self._answers.pop(0)
        if isinstance(answer, TielineError):
            raise answer
        return answer

    def record_probe(self, status: int, seconds: float) -> None:
        self.log.append((status, round(seconds, 3)))

    def record_rpc_probe(self, code: int, seconds: float) -> None:
        self.log.append((-code, round(seconds, 3)))

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.let_through.append(self.unhealthy is None)
        self.now += seconds
        if not self._answers:
            raise Over


async def probed(app: FakeApp, *, threshold: int = 2, interval_s: float = 5.0, path: str = "/healthz") -> Prober:
    checks = HealthChecks(enabled=True, path=path, interval_s=interval_s, timeout_s=0.5, threshold=threshold)
    prober = Prober(app, checks, app, clock=lambda: app.now, sleep=app.sleep)
    with pytest.raises(Over):
        await prober.run()
    return prober


@pytest.mark.rule("H-119", "H-121")
async def test_it_starts_unhealthy_and_one_good_probe_is_enough() -> None:
    app = FakeApp([503, 503, 200])

    prober = await probed(app)

    assert app.let_through == [False, False, True]
    assert prober.well.is_set()
    assert not prober.ill.is_set()


@pytest.mark.rule("H-119")
@pytest.mark.parametrize("threshold", [1, 2, 3])
async def test_as_many_bad_probes_in_a_row_as_the_threshold_says_make_it_unhealthy(threshold: int) -> None:
    app = FakeApp([200, *[503] * threshold, 200, *[503] * threshold])

    prober = await probed(app, threshold=threshold)

    once = [True] * threshold + [False]
    assert app.let_through == once + once
    assert prober.ill.is_set()
    assert not prober.well.is_set()


@pytest.mark.rule("H-119")
async def test_a_good_probe_in_between_starts_the_count_anew() -> None:
    app = FakeApp([200, 503, 200, 503, 200, 503, 503])

    await probed(app)

    assert app.let_through == [True] * 6 + [False]


@pytest.mark.rule("H-118")
@pytest.mark.parametrize(
    ("answer", "good"),
    [(200, True), (204, True), (299, True), (101, False), (199, False), (300, False), (302, False), (404, False),
     (500, False), (REFUSED, False), (LATE, False)],
)  # fmt: skip
async def test_only_2xx_is_good(answer: int | TielineError, good: bool) -> None:
    app = FakeApp([answer])

    await probed(app)

    assert app.let_through == [good]


@pytest.mark.rule("H-118")
async def test_probes_keep_to_the_interval_however_long_they_take() -> None:
    app = FakeApp([200, 200, 200], takes_s=0.4)

    await probed(app, interval_s=1.0)

    assert app.asked == pytest.approx([100, 101, 102])


@pytest.mark.rule("H-118")
async def test_probes_that_are_due_while_one_is_under_way_are_left_out() -> None:
    """A process that was stopped for a while does not make up for it."""
    app = FakeApp([200, 200, 200], takes_s=3.5)

    await probed(app, interval_s=1.0)

    assert app.asked == pytest.approx([100, 103.5, 107])


async def test_every_probe_is_counted_and_one_without_an_answer_counts_as_500() -> None:
    app = FakeApp([200, 503, REFUSED], takes_s=0.25)

    await probed(app)

    assert app.log == [(200, 0.25), (503, 0.25), (500, 0.25)]


@pytest.mark.rule("H-120")
async def test_turns_are_logged_with_the_last_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="dapr.apphealth")

    await probed(FakeApp([200, 503, LATE, 503, 204, 503, 503]))

    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "App health probes starting"),
        ("INFO", "App entered healthy status"),
        ("WARNING", f"App entered un-healthy status: Network error: {LATE.text}"),
        ("INFO", "App entered healthy status"),
        ("WARNING", "App entered un-healthy status: Health check failed with status code: 503"),
        ("INFO", "App health probes stopping"),
    ]


@pytest.mark.rule("H-85", "H-120")
@pytest.mark.parametrize(
    ("answers", "hint"),
    [
        ([503], "/up?deep=1 answered 503, once, last 5.0 s ago; "),
        ([200, 500, 404], "/up?deep=1 answered 404, 2 times in a row, last 5.0 s ago; "),
        (
            [REFUSED, REFUSED],
            "/up?deep=1 failed (dial tcp 127.0.0.1:1: connect: connection refused), 2 times in a row, ",
        ),
        ([LATE], "/up?deep=1 gave no answer in 0.5 s, once, "),
    ],
)
async def test_a_call_that_is_not_let_through_says_how_the_probes_end(
    answers: list[int | TielineError], hint: str
) -> None:
    app = FakeApp(answers)

    await probed(app, path="/up?deep=1")

    assert app.unhealthy is not None
    error = app.unhealthy()
    assert (error.detail, error.cause, error.hop) == (
        "rpc error: code = Internal desc = app is not in a healthy state",
        Cause.APP_UNHEALTHY,
        Hop.APP,
    )
    assert error.hint.startswith(hint)


@pytest.mark.rule("H-121")
async def test_calls_are_not_let_through_before_the_first_answer_and_say_so() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow(FakeApp):
        async def probe(self, target: bytes, timeout_s: float) -> int:
            entered.set()
            await go_on.wait()
            return 200

    app = Slow([])
    checks = HealthChecks(enabled=True, path="/healthz", interval_s=5, timeout_s=0.5, threshold=1)
    prober = Prober(app, checks, clock=lambda: app.now, sleep=app.sleep)
    running = asyncio.create_task(prober.run())

    await entered.wait()
    before, heard = app.unhealthy, prober.heard.is_set()
    go_on.set()
    with pytest.raises(Over):
        await running

    assert (heard, prober.heard.is_set()) == (False, True)
    assert before is not None
    assert before().hint == "the app's health is checked at /healthz for the first time: try again in a moment"
    assert app.unhealthy is None


@pytest.mark.rule("H-118")
@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/healthz/alive?x=1&y=%20", b"/healthz/alive?x=1&y=%20"),
        ("/up#later", b"/up"),
        ("/ä b", b"/%C3%A4%20b"),
        ('/{"\r\n', b"/%7B%22%0D%0A"),
    ],
)
def test_the_path_of_the_option_is_sent_as_a_url_says_it(path: str, target: bytes) -> None:
    assert probe_target(path) == target


def test_the_first_failures_of_an_app_are_no_turn() -> None:
    health = AppHealth("/healthz", 1)

    assert [health.failed("answered 503", 1.0), health.succeeded(), health.succeeded()] == [False, True, False]
    assert health.failed("answered 503", 2.0)


@pytest.mark.rule("G-29")
async def test_an_app_that_is_probed_by_rpc_is_well_with_any_ok_and_its_codes_are_told() -> None:
    failed = TielineError("rpc error: code = Unimplemented desc = ", cause=Cause.APP_BROKEN, grpc_code=12)
    app = FakeApp([0, failed, failed, 0])
    checks = HealthChecks(enabled=True, path="/ignored", interval_s=5.0, timeout_s=0.5, threshold=2)
    prober = Prober(app, checks, app, rpc="/x.Health/Check", clock=lambda: app.now, sleep=app.sleep)

    with pytest.raises(Over):
        await prober.run()

    assert app.let_through == [True, True, False, True]
    assert app.log == [(0, 0.0), (-12, 0.0), (-12, 0.0), (0, 0.0)]


def test_the_refusal_of_an_app_that_is_probed_by_rpc_names_it() -> None:
    health = AppHealth("/x/Check", 1, "OK")
    health.failed("failed (no)", 1.0)

    assert health.refusal(2.0).hint == (
        "/x/Check failed (no), once, last 1.0 s ago; the app gets calls again as soon as it answers there with OK"
    )
