"""Whether this process still has the terminal that it was started in: a hang-up means its end, or a wish to reload."""

from __future__ import annotations

import os
import signal
import sys


def ends_with_terminal() -> bool:
    """Say, at the start, whether the end of its terminal is to end this process: not if ``nohup`` started it."""
    if sys.platform == "win32":
        return False
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()


def has_terminal() -> bool:
    """Say whether this process belongs to a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
