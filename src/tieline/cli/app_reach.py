"""Looks whether a sidecar's app can be reached where the sidecar looks for it."""

from __future__ import annotations

import socket
from typing import Final

from tieline.names.sidecars import SidecarFacts

CONNECT_TIMEOUT_S: Final = 1.0
TLS_PROTOCOLS: Final = ("https", "grpcs")


def app_address(facts: SidecarFacts) -> tuple[str, str]:
    """Return the app's host, and its host and port as people write them."""
    host = (facts.app_address or "127.0.0.1").strip("[]")
    return host, f"[{host}]:{facts.app_port}" if ":" in host else f"{host}:{facts.app_port}"


def app_trouble(facts: SidecarFacts) -> str:
    """Return why a sidecar does not reach its app; empty if it does, has none, or is on another host."""
    if not facts.app_port or facts.is_elsewhere():
        return ""
    host, shown = app_address(facts)
    if refusal(host, facts.app_port):
        return f"nobody listens on {shown}, where its app should"
    if facts.app_protocol in TLS_PROTOCOLS and no_tls(host, facts.app_port):
        return f"its app on {shown} speaks no TLS, and --app-protocol is {facts.app_protocol}"
    return ""


def refusal(host: str, port: int) -> str:
    """Return why nobody can be reached there; empty if somebody can."""
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def no_tls(host: str, port: int) -> str:
    """Return why TLS cannot be spoken there; empty if it can."""
    import ssl  # rarely needed

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain:
            context.wrap_socket(plain).close()
    except ssl.SSLError as error:
        return str(error.reason or error).lower().replace("_", " ")
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
