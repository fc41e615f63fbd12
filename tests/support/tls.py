"""Certificates that nobody signed, and an authority of the tests' own."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = (-1, 1)
"""Days from now between which a certificate holds."""
EXPIRED = (-3, -1)


class Pair(NamedTuple):
    """A certificate and its key, as PEM text."""

    certificate: str
    key: str


class Authority:
    """Signs certificates.

    Attributes:
        pem: Its own certificate.
    """

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _sign(name, self._key, None, self._key, (), VALID, ca=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, *hosts: str, days: tuple[int, int] = VALID, name: str = "somebody") -> Pair:
        """Return a pair that is good for some names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(name, key, self._certificate, self._key, hosts, days)
        return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key))


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    days: tuple[int, int],
    *,
    ca: bool = False,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def server_context(folder: Path, pair: Pair, *, asks: str | None = None, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return the settings of a server; ``asks`` for certificates of an authority, given as PEM text."""
    pem = folder / f"server-{abs(hash(pair))}.pem"
    pem.write_text(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if asks is not None:
        context.load_verify_locations(cadata=asks)
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def self_signed(folder: Path, name: str) -> ssl.SSLContext:
    """Return the context of a server that shows a certificate of its own making."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(name, key, None, key, (), VALID)
    pair = Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key))
    return server_context(folder, pair)


@contextlib.contextmanager
def strict_server(context: ssl.SSLContext) -> Iterator[int]:
    """Serve ``200 ok`` in a thread, and tell clients by an alert why they are refused, which asyncio does not.

    Yields the port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, context), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            with contextlib.suppress(OSError), sock, context.wrap_socket(sock, server_side=True) as secure:
                while secure.recv(65536):
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
