"""Child processes in groups of their own: started, watched, asked to stop, and in the end killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final


class Child:
    """A process and everything it starts: they are signalled together.

    It leads a session of its own, so a Ctrl-C of the terminal does not reach it (we pass it on, once) and it may
    still read the terminal.

    Args:
        command: Program and arguments; the program is looked up in the environment's PATH.
        environment: The whole environment; ours if ``None``.
        output: ``subprocess.PIPE`` to read its output, a file to send it there, ``None`` to share ours.

    Raises:
        OSError: It could not be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: int | IO[bytes] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            list(command), env=environment, stdout=output, stderr=output, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """Process id, and id of its group."""
        return self._process.pid

    @property
    def stdout(self) -> IO[bytes]:
        """Its output, if it was asked for."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """Its errors, if its output was asked for."""
        assert self._process.stderr is not None
        return self._process.stderr

    @property
    def ended(self) -> bool:
        """Whether the process itself has ended; others of its group may live on."""
        return self._process.poll() is not None

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the number of a signal that ended it, ``None`` while it runs."""
        return self._process.poll()

    def on_end(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called from another thread once the process has ended."""

        def watch() -> None:
            self._process.wait()
            tell()

        threading.Thread(target=watch, name=f"child {self.pid}", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the process to end; tell whether it has."""
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        """Ask the group to stop."""
        self._signal(signal.SIGTERM)

    def reload(self) -> None:
        """Ask the process itself to read its files anew, where the system has a signal for that."""
        if sys.platform != "win32" and not self.ended:
            self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill what is left of the group. Idempotent."""
        if sys.platform == "win32":
            self._process.kill()
        else:
            self._signal(signal.SIGKILL)

    @property
    def gone(self) -> bool:
        """Whether no process of the group is left."""
        return self.ended and _group_is_empty(self.pid)

    def _signal(self, number: int) -> None:
        if sys.platform == "win32":
            self._process.terminate()
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
            return


class Guard:
    """Asks processes to stop if this one is killed before it could do so itself.

    A shell that reads from a pipe of ours: if the pipe ends without a word, we are gone. Where there is no such shell
    there is no guard. Asking the kernel (PR_SET_PDEATHSIG) would mean running Python between fork and exec.
    """

    _SCRIPT: Final = (
        "while read -r word; do"
        ' case $word in done) exit;; *) groups="$groups $word";; esac; '
        "done; for group in $groups; do kill -s TERM -- -$group; done"
    )

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform == "win32":
            return
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self._SCRIPT, "tieline-guard"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def watch(self, child: Child) -> None:
        """Stop this child, too, if we are killed."""
        self._say(str(child.pid))

    def release(self) -> None:
        """Nothing is left to stop. Idempotent."""
        self._say("done")
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()

    def _say(self, word: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{word}\n".encode("ascii"))
            self._process.stdin.flush()


def _group_is_empty(group: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return True
    # In a container nobody may collect orphans: they stay as zombies and would be waited for in vain.
    return sys.platform == "linux" and all(state == "Z" for state in _states(group))


def _states(group: int) -> list[str]:
    """Return the states of a group's processes, as ``/proc/<pid>/stat`` has them."""
    states: list[str] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; then state, parent, group.
            fields = path.read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == group:
            states.append(fields[0].decode("ascii"))
    return states


def exit_code(returncode: int) -> int:
    """Return what a shell would show: the code, or 128 and the number of the signal."""
    return returncode if returncode >= 0 else 128 - returncode


def describe(returncode: int) -> str:
    """Return ``exit code 3`` or ``killed by SIGKILL``."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
