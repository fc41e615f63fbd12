"""requests and httpx, the HTTP clients that Python programs use."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import pytest

from tests.support.pair import Pair

BODY = '{ "arg1": 10, "arg2": 23}'
BIG = bytes(range(256)) * 8192
AT_ONCE = 50


def check_calls(client: Any, pair: Pair) -> None:
    """Make the calls that every client must manage; both libraries have the same face for them."""
    for method in ("add", "api/v1/add"):
        answer = client.post(f"{pair.base}/{method}", data=BODY, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.text) == (200, "33")
    answer = client.get(f"{pair.base}/told", headers={"x-asked": "yes"})
    assert answer.json()["headers"]["x-asked"] == "yes"
    assert answer.headers["x-answer"] == "from the app"
    for body in (BODY, BIG):
        answer = client.post(f"http://127.0.0.1:{pair.http_port}/v1.0/invoke/nobody/method/add", data=body)
        assert answer.status_code == 500
        assert answer.json()["message"].startswith("failed to invoke, id: nobody, err: ")
        assert answer.headers["tieline-cause"] == "name-unknown"


@pytest.mark.rule("A-13")
def test_requests_calls_an_app(pair: Pair) -> None:
    requests = pytest.importorskip("requests")

    with requests.Session() as session:
        check_calls(session, pair)
        whole = session.post(f"{pair.base}/echo", data=BIG)
        in_chunks = session.post(f"{pair.base}/echo", data=iter([BIG[:70000], BIG[70000:]]))

    assert whole.content == in_chunks.content == BIG


def test_requests_makes_many_calls_at_once(pair: Pair) -> None:
    requests = pytest.importorskip("requests")

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda n: requests.post(f"{pair.base}/echo", data=str(n)).text, range(AT_ONCE)))

    assert answers == [str(n) for n in range(AT_ONCE)]


@pytest.mark.rule("A-13", "H-3")
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_httpx_calls_an_app(pair: Pair, version: str) -> None:
    httpx = pytest.importorskip("httpx")
    if version == "HTTP/2":
        pytest.importorskip("h2")

    with httpx.Client(http1=version == "HTTP/1.1", http2=version == "HTTP/2", trust_env=False) as client:
        answer = client.get(f"{pair.base}/told")
        check_calls(_Httpx(client), pair)
        whole = client.post(f"{pair.base}/echo", content=BIG)
        in_pieces = client.post(f"{pair.base}/echo", content=iter([BIG[:70000], BIG[70000:]]))

    assert answer.http_version == version
    assert whole.content == in_pieces.content == BIG


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
async def test_httpx_makes_many_calls_at_once(pair: Pair, version: str) -> None:
    httpx = pytest.importorskip("httpx")
    if version == "HTTP/2":
        pytest.importorskip("h2")

    async with httpx.AsyncClient(http1=version == "HTTP/1.1", http2=version == "HTTP/2", trust_env=False) as client:
        answers = await asyncio.gather(*(client.post(f"{pair.base}/echo", content=str(n)) for n in range(AT_ONCE)))

    assert [answer.text for answer in answers] == [str(n) for n in range(AT_ONCE)]


class _Httpx:
    """httpx with the argument name that requests has for a body of text."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.get = client.get

    def post(self, url: str, *, data: str | bytes, headers: dict[str, str] | None = None) -> Any:
        return self._client.post(url, content=data, headers=headers)
