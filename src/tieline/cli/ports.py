"""Free ports for child processes, held until the child has them."""

from __future__ import annotations

import socket
import sys
from typing import Final

# Linux lets two sockets that both allow reuse bind one port while none listens: a port can be held, and still be
# bound by the child, until the child listens. Elsewhere it is let go just before the child starts.
CAN_HOLD: Final = sys.platform == "linux"


class HeldPort:
    """A port of this host that nobody else gets while it is held.

    Args:
        number: The port to hold; 0 for any free one.

    Raises:
        OSError: The port is taken or not ours to take.
    """

    def __init__(self, number: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if sys.platform != "win32":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("", number))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise error if isinstance(error, OSError) else OSError(str(error)) from error
        self.number: int = self._socket.getsockname()[1]

    def before_start(self) -> None:
        """The child is about to start: let go where it could not bind otherwise."""
        if not CAN_HOLD:
            self.release()

    def release(self) -> None:
        """Let go. Idempotent."""
        self._socket.close()


def is_free(number: int) -> bool:
    """Whether a port can be bound and nobody listens on it."""
    try:
        HeldPort(number).release()
    except OSError:
        return False
    return True
