"""A sidecar that looks for cycles at SIGUSR1, and writes what it found into the file ``TIELINE_CYCLES``."""

from __future__ import annotations

import collections
import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from tieline.cli.main import main


def collect(number: int, frame: FrameType | None) -> None:
    """Collect what only cycles keep, and tell how many objects of which kinds that was."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    found = gc.collect()
    kinds = collections.Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    gc.set_debug(0)
    gc.garbage.clear()
    gc.collect()
    gc.disable()
    path = Path(os.environ["TIELINE_CYCLES"])
    path.with_suffix(".new").write_text(f"{found}\n{kinds.most_common(20)}")
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, collect)
    sys.exit(main())
