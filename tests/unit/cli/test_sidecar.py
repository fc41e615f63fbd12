"""``tieline sidecar`` from outside: what it says when it does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_sockets_in_place_of_ports_are_refused_and_no_port_is_opened_instead(tmp_path: Path) -> None:
    """Whoever asks for them wants no open port."""
    done = subprocess.run(
        [sys.executable, "-m", "tieline", "sidecar", "--app-id", "a", "--unix-domain-socket", str(tmp_path)],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("tieline sidecar: Fatal error from runtime: --unix-domain-socket is given, but")
    assert "is running on port" not in done.stdout
    assert "Traceback" not in done.stderr
