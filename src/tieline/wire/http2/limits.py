"""Every bound of an HTTP/2 connection, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost. Sizes in bytes.

    Attributes:
        streams: Streams that the peer may have open at a time (SETTINGS_MAX_CONCURRENT_STREAMS).
        header_list: Size of a header list as RFC 9113 §6.5.2 counts it; a longer request is answered 431.
        header_list_hard: Above this the connection ends: a bomb rather than an accident.
        continuations: CONTINUATION frames a header block may take.
        connection_window: Bytes the peer may send on all streams together before we return credit.
        unread: Bytes received and not yet read, over all streams, above which credit is held back.
        stream_window: Bytes the peer may send at first on one stream.
        stream_window_max: What the window of a stream may grow to whose reader keeps up.
        held_out: Bytes waiting to be written, above which no more body is taken in.
        control_burst, control_rate: Frames that cost us work and carry nothing (SETTINGS, PING, PRIORITY,
            empty DATA, unknown ones): how many at once, and how many a second in the long run.
        reset_burst, reset_rate: The same for streams opened and cut off before their answer is over.
        forgotten: How many streams that we reset are remembered, so that late frames on them do no harm.
    """

    streams: int = 250
    header_list: int = 65536
    header_list_hard: int = 262144
    continuations: int = 64
    connection_window: int = 8 << 20
    unread: int = 32 << 20
    stream_window: int = 65535
    stream_window_max: int = 1 << 20
    held_out: int = 256 << 10
    control_burst: int = 5000
    control_rate: float = 500.0
    reset_burst: int = 1000
    reset_rate: float = 200.0
    forgotten: int = 1024


class Budget:
    """A token bucket: ``burst`` at once, ``rate`` a second in the long run."""

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_since")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._left = float(burst)
        self._since = 0.0

    def spend(self) -> bool:
        """Take one token; False if there is none left."""
        self._left -= 1
        if self._left < self._burst / 2:  # the clock is only asked when it begins to matter
            now = self._clock()
            if self._since:
                self._left = min(float(self._burst), self._left + (now - self._since) * self._rate)
            self._since = now
        return self._left >= 0
