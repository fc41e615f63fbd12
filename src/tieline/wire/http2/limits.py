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
        grown: Bytes by which the windows of all streams together may have grown at a time. With ``streams`` windows of
            the first size they stay below ``unread``: readers that stop cannot hold up the others.
        held_out: Bytes waiting to be written, above which no more body is taken in.
        control_burst, control_rate: Frames that cost us work and carry nothing (SETTINGS, PING, PRIORITY,
            empty DATA, unknown ones, interim answers): how many at once, and how many a second in the long run.
        control_per_stream: How many of them each stream pays for, on top of that.
        reset_burst, reset_rate, reset_per_stream: The same for streams cut off before their answer is over, by the
            peer or by us for what the peer did.
        settings: Settings that one frame may bring.
        dribble: A WINDOW_UPDATE of fewer bytes for somebody who waits for it counts as such a frame as well.
        held_frames: Frames (or halves of them) waiting to be written, above which the peer may not cause more.
        ping_interval_s: PINGs of a client that come faster than that, without anything of ours between them, end the
            connection after a few; 0 for no such rule, which is gRPC's.
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
    grown: int = 16 << 20
    held_out: int = 256 << 10
    control_burst: int = 5000
    control_rate: float = 500.0
    control_per_stream: float = 4.0
    reset_burst: int = 1000
    reset_rate: float = 200.0
    reset_per_stream: float = 0.25
    settings: int = 64
    dribble: int = 64
    held_frames: int = 16384
    ping_interval_s: float = 0.0
    forgotten: int = 1024


class Budget:
    """A token bucket: ``burst`` at once, ``rate`` a second in the long run."""

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_since")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._left = float(burst)
        self._since: float | None = None

    def spend(self, earned: float = 0.0) -> bool:
        """Take one token, after adding those ``earned`` otherwise; False if there is none left."""
        left = min(float(self._burst), self._left + earned)
        if left <= self._burst / 2:  # the clock is only asked when it begins to matter
            now = self._clock()
            if self._since is not None:
                left = min(float(self._burst), left + (now - self._since) * self._rate)
            self._since = now
        self._left = left - 1
        return left >= 1
