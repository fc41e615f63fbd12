"""What happens between sidecar and app when the app comes up: waiting for its port, and its first call."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from time import perf_counter
from typing import Final

from tieline.app.channel import AppChannel, read_out
from tieline.errors import TielineError
from tieline.model import CallRecord, Invocation, Target

log = logging.getLogger("dapr.runtime")

RETRY_S: Final = 0.1
TRY_S: Final = 0.5
TRIES_A_LINE: Final = 100
"""After so many failed tries a line says that the app is still being awaited (H-116)."""


async def wait_for_port(protocol: str, host: str, port: int, *, on_wait: Callable[[], None]) -> None:
    """Return when the app accepts connections; for ``https`` and ``grpcs``, when it speaks TLS.

    ``on_wait`` is called after each try that failed.
    """
    log.info(
        "application protocol: %s. waiting on port %d.  "
        "This will block until the app is listening on that port.",
        protocol, port,
    )  # fmt: skip
    tls = _context() if protocol in ("https", "grpcs") else None
    address = host[1:-1] if host.startswith("[") else host
    tries, told = 0, False
    while trouble := await _trouble(address, port, tls):
        tries += 1
        if tls is not None and not told and isinstance(trouble, (ssl.SSLError, ConnectionResetError)):
            told = True
            log.warning(
                "what listens on port %d speaks no TLS (%s): is --app-protocol %s right, or %s?",
                port, trouble.strerror or trouble, protocol, protocol.removesuffix("s"),
            )  # fmt: skip
        on_wait()
        if tries % TRIES_A_LINE == 0:
            log.info("waiting for application to listen on port %d", port)
        await asyncio.sleep(RETRY_S)
    log.info("application discovered on port %d", port)


async def _trouble(host: str, port: int, tls: ssl.SSLContext | None) -> Exception | None:
    """Return why the app cannot be reached; ``None`` if it can."""
    try:
        async with asyncio.timeout(TRY_S):
            _, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=host if tls else None)
    except (OSError, ValueError) as error:
        return error
    writer.close()
    return None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def ask_config(channel: AppChannel, app_id: str, namespace: str, counted: Callable[[CallRecord], None]) -> None:
    """Ask the app for its Dapr configuration, as apps of Dapr expect at their start (H-117).

    Whatever it answers is of no interest here: only actors would be configured by it.

    Args:
        counted: Is told of the call when it was answered, or has failed.
    """
    record = CallRecord()
    record.started = perf_counter()
    record.verb, record.method = b"GET", b"dapr/config"
    target = Target(app_id, namespace, app_id)
    headers = [(b"content-type", b"application/json")]
    call = Invocation(target, b"GET", b"dapr/config", b"dapr/config", b"", headers, b"", 0, record)
    try:
        reply = await channel.call(call, [(b"dapr-app-id", app_id.encode())])
    except TielineError as error:
        log.debug("the app gave no Dapr configuration: %s", error.text)
        counted(record)
        return
    record.status = reply.status
    record.response_bytes = await read_out(reply)
    counted(record)
