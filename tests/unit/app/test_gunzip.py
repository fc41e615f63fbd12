"""Gzip answers that nobody asked for."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable

import pytest

from tieline.app.gunzip import GunzippedBody
from tieline.errors import AppBroken
from tieline.model import MAX_CHUNK, Headers

PLAIN = random.Random(7).randbytes(3000) * 100


class Pieces:
    """A body that comes in pieces."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = list(parts)
        self.trailers: Headers = [(b"x-end", b"1")]

    async def read(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""

    def abandon(self) -> None:
        """Nothing is lost."""


def cut(data: bytes, size: int) -> Pieces:
    return Pieces(data[at : at + size] for at in range(0, len(data), size))


async def unpacked(body: bytes | Pieces) -> bytes:
    source = GunzippedBody(body)
    found = []
    while piece := await source.read():
        assert len(piece) <= MAX_CHUNK
        found.append(piece)
    return b"".join(found)


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
async def test_all_of_it_comes_out_however_it_is_cut(size: int) -> None:
    packed = gzip.compress(PLAIN)

    assert await unpacked(cut(packed, size)) == PLAIN
    assert await unpacked(packed) == PLAIN


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_members_that_follow_one_another_are_one_body(size: int) -> None:
    """So log files and their like are packed (RFC 1952 §2.2)."""
    packed = gzip.compress(b"first ") + gzip.compress(b"") + gzip.compress(PLAIN)

    assert await unpacked(cut(packed, size)) == b"first " + PLAIN


@pytest.mark.rule("H-70")
@pytest.mark.parametrize("left", [1, 12, -4, -1])
async def test_of_one_that_stops_early_there_is_what_came(left: int) -> None:
    found = await unpacked(cut(gzip.compress(PLAIN)[:left], 1000))

    assert PLAIN.startswith(found)
    assert left > 0 or found == PLAIN


@pytest.mark.parametrize("size", [1, 1000])
async def test_what_follows_and_is_no_gzip_is_dropped(size: int) -> None:
    assert await unpacked(cut(gzip.compress(b"x") + b"rubbish \x1f rubbish", size)) == b"x"


async def test_what_is_no_gzip_at_all_is_the_app_s_fault() -> None:
    with pytest.raises(AppBroken, match="no gzip"):
        await unpacked(b"hello world")


async def test_nothing_at_all_is_an_empty_body() -> None:
    assert await unpacked(Pieces([])) == b""
