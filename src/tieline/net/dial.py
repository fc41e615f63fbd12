"""Why a connection could not be opened, in the words that Go's dialler uses and Dapr's users know."""

from __future__ import annotations

import errno
import ssl


def dial_text(error: OSError) -> str:
    """Return the reason, e.g. ``connect: connection refused``."""
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    if isinstance(error, ssl.SSLError):
        return f"tls: {error.reason or error}"
    if error.errno == errno.ECONNREFUSED or "Connect call failed" in str(error):
        return "connect: connection refused"
    return f"connect: {(error.strerror or str(error)).lower()}"
