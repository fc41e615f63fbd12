"""Why a connection could not be opened, in the words that Go's client uses and Dapr's users know."""

from __future__ import annotations

import errno
import ssl
from typing import Final

from tieline.errors import AppUnreachable
from tieline.model import Cause, Endpoint, Hop


class NameUnknown(OSError):
    """A host has no address."""


class ProxyFailed(OSError):
    """The proxy could not be asked, or did not let us through."""


class HandshakeFailed(OSError):
    """The server broke the TLS handshake off, or did not get on with it."""


class LeadsBack(OSError):
    """What answers there is this sidecar itself."""


class TlsUnusable(OSError):
    """Certificates or keys of ours that cannot be used; the text says which, and why, and the hint what to do."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


def explain(error: OSError, place: Endpoint) -> AppUnreachable:
    """Return the failure to reach a server as a call can tell it."""
    if isinstance(error, ssl.SSLError):
        return AppUnreachable(tls_text(error, place.host), cause=Cause.PEER_TLS, hint=_tls_hint(error))
    if isinstance(error, TlsUnusable):
        return AppUnreachable(error.text, cause=Cause.PEER_TLS, hop=Hop.CALLER, hint=error.hint)
    if isinstance(error, HandshakeFailed):
        return AppUnreachable(str(error), cause=Cause.PEER_TLS)
    if isinstance(error, LeadsBack):
        hint = "a call would come back for ever; address an app by its app ID, and let baseUrl name another server"
        return AppUnreachable(f"dial tcp {place}: {error}", hop=Hop.CALLER, hint=hint)
    if isinstance(error, ProxyFailed):
        hint = "requests to that host go through a proxy: check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        return AppUnreachable(str(error), hint=hint)
    hint = "check the name of the host, and this machine's DNS" if isinstance(error, NameUnknown) else ""
    return AppUnreachable(dial_text(error, place), hint=hint)


def dial_text(error: OSError, place: Endpoint) -> str:
    """Return what failed and why, e.g. ``dial tcp 127.0.0.1:80: connect: connection refused``."""
    if isinstance(error, NameUnknown):
        return f"dial tcp: {error}"
    return f"dial tcp {place}: {reason_text(error)}"


def reason_text(error: OSError) -> str:
    """Return the reason, e.g. ``connect: connection refused``."""
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    if isinstance(error, ssl.SSLError):
        return tls_text(error)
    if error.errno == errno.ECONNREFUSED or "Connect call failed" in str(error):
        return "connect: connection refused"
    return f"connect: {(error.strerror or str(error) or type(error).__name__).lower()}"


_SAID_BY_PEER: Final = "_ALERT_"
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
_EXPIRED: Final = frozenset({9, 10})
_NOT_TRUSTED: Final = frozenset({2, 7, 18, 19, 20, 21, 24, 27})
_OTHER_HOST: Final = frozenset({62, 63, 64})
_OTHER_USE: Final = frozenset({26, 28, 79, 88, 89})
# Numbers of X509_V_ERR_… (openssl/x509_vfy.h).


def tls_text(error: ssl.SSLError, host: str = "the host") -> str:
    """Return why TLS failed, as Go says it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: x509: {_certificate_text(error, host)}"
    reason = error.reason or ""
    if _SAID_BY_PEER in reason:
        return f"remote error: tls: {reason.partition(_SAID_BY_PEER)[2].replace('_', ' ').lower()}"
    if reason in _NO_TLS:
        return "tls: first record does not look like a TLS handshake"
    return f"tls: {reason.replace('_', ' ').lower() or error}"


def _certificate_text(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code in _EXPIRED:
        return f"certificate has expired or is not yet valid: {error.verify_message}"
    if code in _NOT_TRUSTED:
        return "certificate signed by unknown authority"
    if code in _OTHER_HOST:
        return f"certificate is not valid for {host}"
    if code in _OTHER_USE:
        return "certificate specifies an incompatible key usage"
    return str(error.verify_message).lower()


def _tls_hint(error: ssl.SSLError) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        if _SAID_BY_PEER in (error.reason or ""):
            return "the server refused us: it may ask for another client certificate"
        return "what listens there speaks no TLS that we know: is http:// meant?" if error.reason in _NO_TLS else ""
    code = error.verify_code
    if code in _EXPIRED:
        return "the server's certificate must be renewed, or a clock is wrong"
    if code in _NOT_TRUSTED:
        return "if its authority is a private one, call it through an HTTPEndpoint that names it in clientTLS.rootCA"
    if code in _OTHER_HOST:
        return "call the server by a name that its certificate holds"
    return ""
