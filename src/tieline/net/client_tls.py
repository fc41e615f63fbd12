"""TLS towards servers that are no sidecars: whom to trust, what to show, and settings that are made when needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Final

from tieline.net.dial_text import TlsUnusable

PROTOCOLS: Final = ("h2", "http/1.1")
"""What we offer to speak, in the order of our liking (ALPN)."""


class LazyTls:
    """TLS settings made once, when the first connection needs them, beside the event loop.

    Reading the system's trust store takes tens of milliseconds, and most sidecars never need it.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self._made: ssl.SSLContext | TlsUnusable | None = None
        self._making = asyncio.Lock()
        self._for_http1: LazyTls | None = None

    async def get(self) -> ssl.SSLContext:
        """Return the settings.

        Raises:
            TlsUnusable: They cannot be made; it stays so.
        """
        if self._made is None:
            async with self._making:
                if self._made is None:
                    try:
                        self._made = await asyncio.to_thread(self._make)
                    except TlsUnusable as error:
                        self._made = error
        if isinstance(self._made, TlsUnusable):
            raise TlsUnusable(self._made.text, self._made.hint)
        return self._made

    def for_http1(self) -> LazyTls:
        """Return the same settings for connections that may speak HTTP/1.1 only; always the same object."""
        if self._for_http1 is None:
            self._for_http1 = LazyTls(self._make_for_http1)
        return self._for_http1

    def _make_for_http1(self) -> ssl.SSLContext:
        context = self._make()
        context.set_alpn_protocols(["http/1.1"])
        return context


def trusting_context(protocol: str) -> ssl.SSLContext:
    """Return settings for our own app, whose certificate is not checked (H-111, G-30).

    Args:
        protocol: What is spoken over it, by its name in ALPN.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


def verifying_context(
    *,
    root_ca: str | None = None,
    certificate: str | None = None,
    private_key: str | None = None,
    renegotiates: bool = False,
) -> ssl.SSLContext:
    """Return settings that check the server's certificate and its name.

    Args:
        root_ca: PEM text that replaces the system's trust store. What it holds is trusted, a root or not.
        certificate: PEM text; shown to a server that asks, if ``private_key`` is there too.
        renegotiates: A server may ask for another handshake (TLS 1.2).

    Raises:
        TlsUnusable: One of the texts cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A name that stands only in the subject counts for nothing (RFC 9525 §2).
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(list(PROTOCOLS))
    if not renegotiates:
        context.options |= ssl.OP_NO_RENEGOTIATION
    if root_ca is None:
        context.load_default_certs()
    else:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            # People write comments between certificates, and not only in ASCII.
            context.load_verify_locations(cadata=root_ca.encode("ascii", "ignore").decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise TlsUnusable(f"clientTLS.rootCA holds no certificate that can be used: {_reason(error)}") from error
    if certificate is not None and private_key is not None:
        if "ENCRYPTED" in private_key:
            raise TlsUnusable("clientTLS.privateKey is encrypted: it must be given without a password")
        try:
            with _as_file(f"{certificate}\n{private_key}\n") as path:
                # With a password to hand, even a wrong one, nobody is asked for it on the terminal.
                context.load_cert_chain(path, password="")
        except (ssl.SSLError, ValueError, OSError) as error:
            text = "clientTLS.certificate and clientTLS.privateKey cannot be used together"
            raise TlsUnusable(f"{text}: {_reason(error)}") from error
    return context


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Lend a text to what reads files only. A private key is in it: it stays in memory where the system can do that."""
    data = text.encode("utf-8", "surrogateescape")
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("tls")
        try:
            with open(number, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
        return
    import tempfile  # only where there is no other way

    with tempfile.NamedTemporaryFile() as named:
        named.write(data)
        named.flush()
        yield named.name


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return "no start line" if isinstance(error, ssl.SSLError) else str(error)
