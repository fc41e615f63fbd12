"""Checks of ``tieline doctor`` on this host: Python, packages, variables, loopback, files that the user names."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import tieline
from tieline.cli.api import BadToken, NotReached, ask, checked_token
from tieline.cli.findings import Finding, fail, ok, warn
from tieline.cli.roster import ASK_TIMEOUT_S
from tieline.cli.sockets import describe, listeners, owners
from tieline.cli.wait import HEALTH_PATH
from tieline.config.fatal import FatalOption
from tieline.errors import ConfigError

PACKAGES: Final = {"aiofastnet": "", "jh2": "", "orjson": "", "yaml": "pyyaml", "uvloop": ""}
"""Modules that are needed, and the packages that they come with if those have another name."""
LEAST_DESCRIPTORS: Final = 1024
LOOPBACK_TIMEOUT_S: Final = 2.0
_LOCAL: Final = ("localhost", "127.0.0.1")


def check_python(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Is everything there that Tieline is made of?"""
    found = [f"Tieline {tieline.__version__}, {platform.python_implementation()} {platform.python_version()}"]
    for module, package in PACKAGES.items():
        name = package or module
        if importlib.util.find_spec(module) is not None:
            found.append(f"{name} {_version(name)}")
        elif module == "uvloop":
            why = "sidecars run on plain asyncio, which costs more per call"
            yield warn("python", "uvloop is not installed", why, "install it: pip install uvloop")
        else:
            yield fail("python", f"{name} is not installed", "sidecars do not start", f"pip install {name}")
    yield ok("python", ", ".join(found))
    if sys.platform != "linux":
        yield warn("system", f"{sys.platform} is not tested", "some things may not work", "use Linux where it matters")
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < LEAST_DESCRIPTORS:
        why = "a busy sidecar runs out of connections"
        yield warn("limits", f"a process may have {soft} files open", why, "raise it: ulimit -n 4096")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)"


def check_variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Does a variable lead calls astray?"""
    wrong = [*_proxies(environ), *_endpoints(environ), *_tokens(environ)]
    yield from wrong
    space = environ.get("NAMESPACE")
    if space:
        yield ok("variables", f"NAMESPACE is {space}: apps started here are in that namespace")
    if not wrong:
        yield ok("variables", "no proxy, endpoint or token variable is in the way")


def _proxies(environ: Mapping[str, str]) -> Iterator[Finding]:
    names = [
        name for name in environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy") and environ[name].strip()
    ]
    if not names:
        return
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    missing = [host for host in _LOCAL if not _is_exempt(host, exempt)]
    if missing:
        yield warn(
            "variables",
            f"{', '.join(sorted(names))} set, but NO_PROXY does not exempt {' and '.join(missing)}",
            "many clients send calls that are meant for the sidecar to the proxy",
            f"set NO_PROXY={','.join(filter(None, [exempt, *missing]))}",
        )


def _is_exempt(host: str, exempt: str) -> bool:
    """Whether at least most clients read a ``NO_PROXY`` as holding a host of this machine."""
    items = {item.strip().lower().removeprefix(".") for item in exempt.split(",")}
    return bool(items & {"*", host}) or (
        host[0].isdigit() and any(item.startswith("127.") and "/" in item for item in items)
    )


def _endpoints(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name in ("DAPR_HTTP_ENDPOINT", "DAPR_GRPC_ENDPOINT"):
        if environ.get(name):
            yield warn(
                "variables",
                f"{name} is {environ[name]}",
                "SDKs of apps started here call that, and not the sidecar beside them",
                f"unset {name} if you did not mean so",
            )
    port = environ.get("DAPR_HTTP_PORT", "")
    if not port:
        return
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        yield fail("variables", f"DAPR_HTTP_PORT is {port!r}, which is no port", "SDKs fail", "unset it")
        return
    try:
        ask(("127.0.0.1", int(port)), "GET", HEALTH_PATH, timeout_s=ASK_TIMEOUT_S)
    except NotReached as error:
        yield warn(
            "variables",
            f"DAPR_HTTP_PORT is {port}, but {error}",
            "apps started here without a sidecar of their own call nobody",
            "unset it, or start the sidecar on that port",
        )


def _tokens(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name, use in (
        ("DAPR_API_TOKEN", "sidecars started here ask their apps for it, and commands send it"),
        ("APP_API_TOKEN", "sidecars started here send it to their apps"),
    ):
        value = environ.get(name)
        if value is None:
            continue
        try:
            checked_token(value, name)
        except BadToken:
            what = f"{name} has a control character, such as a line end"
            yield fail("variables", what, "it cannot be sent: sidecars do not start with it", "set it without")
            continue
        if value != value.strip():
            why = "it hardly equals what the other side has"
            yield warn("variables", f"{name} begins or ends with a blank or a line break", why, "set it without")
        elif value:
            yield ok("variables", f"{name} is set: {use}")
        else:
            why = "there is no token, although somebody may believe so"
            yield warn("variables", f"{name} is set to nothing", why, "unset it, or give it a value")


def check_loopback(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Can two programs of this host talk to each other?"""
    todo = "look at /etc/hosts, firewall and antivirus"
    try:
        hosts = {str(info[4][0]) for info in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)}
        if "127.0.0.1" not in hosts:
            told = f"localhost is {', '.join(sorted(hosts))} and not 127.0.0.1"
            yield fail("loopback", told, "clients that call localhost do not find a sidecar", todo)
    except OSError as error:
        yield fail("loopback", f"localhost cannot be looked up ({error})", "clients do not find their sidecar", todo)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(LOOPBACK_TIMEOUT_S)
            with socket.create_connection(server.getsockname(), LOOPBACK_TIMEOUT_S) as client:
                accepted, _ = server.accept()
                with accepted:
                    accepted.settimeout(LOOPBACK_TIMEOUT_S)
                    client.sendall(b"?")
                    accepted.recv(1)
    except OSError as error:
        yield fail("loopback", f"a connection on 127.0.0.1 fails ({error})", "no sidecar can be reached", todo)
        return
    yield ok("loopback", "programs of this host reach each other on 127.0.0.1")
    host = environ.get("DAPR_HOST_IP", "")
    if host and not _is_ours(host):
        why = "other hosts, and sidecars that use another name resolution, call the wrong address"
        yield warn("loopback", f"DAPR_HOST_IP is {host}, which is no address of this host", why, "correct or unset it")


def _is_ours(host: str) -> bool:
    try:
        infos = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, place in infos:
        with socket.socket(family, kind) as end:
            try:
                end.bind(place)
            except OSError:
                continue
            return True
    return False


def check_default_ports(environ: Mapping[str, str], sidecars: set[int]) -> Iterator[Finding]:
    """Are the ports free that a sidecar takes when none are given?

    Args:
        sidecars: Processes that may have them.
    """
    usual = {3500: "--dapr-http-port", 50001: "--dapr-grpc-port", 9090: "--metrics-port"}
    taken = [listener for listener in listeners() if listener.port in usual]
    whose = owners(listener.inode for listener in taken)
    told: set[int] = set()
    for listener in taken:
        pid = whose.get(listener.inode)
        if pid in sidecars or listener.port in told:
            continue
        told.add(listener.port)
        yield warn(
            "ports",
            f"{describe(pid, listener.uid)} listens on {listener.shown}",
            f"a sidecar that is started without {usual[listener.port]} cannot use that port",
            f'give another {usual[listener.port]}, use "tieline run", which takes free ones, or stop that program',
        )
    if not told:
        yield ok("ports", f"{', '.join(map(str, usual))} are free or have sidecars")


def check_files(
    environ: Mapping[str, str], app_id: str, configurations: Sequence[str], folders: Sequence[str]
) -> Iterator[Finding]:
    """Can the files be used that the user names?  First as a sidecar sees them, then as ``validate`` does."""
    from tieline.cli.validate import check_paths
    from tieline.config.checks.findings import Severity

    troubles = list(_start_with(environ, app_id, configurations, folders))
    checker, _ = check_paths((*configurations, *folders), environ)
    for found in checker.findings():
        if found.message.startswith("cannot be read") and any(found.file in trouble.what for trouble in troubles):
            continue  # it was told already, in the words of a start
        place = f"{found.file}:{found.line}" if found.line else found.file
        what, todo = f"{place}: {found.message}", found.hint or "correct it"
        if found.severity is Severity.ERROR:
            troubles.append(fail("files", what, "it does not do what it says", todo))
        elif found.severity is Severity.WARNING:
            troubles.append(warn("files", what, "it may not do what is expected of it", todo))
    yield from troubles
    if not troubles:
        yield ok("files", f"{', '.join((*configurations, *folders))} can be used")


def _start_with(
    environ: Mapping[str, str], app_id: str, configurations: Sequence[str], folders: Sequence[str]
) -> Iterator[Finding]:
    """Tell what would end the start of a sidecar."""
    from tieline.config.configuration import load_configuration
    from tieline.config.resources import load_resources

    try:
        load_configuration(tuple(configurations), environ)
        load_resources(folders, app_id=app_id, environ=environ, watch=False)
    except (ConfigError, OSError) as error:
        text = error.message if isinstance(error, FatalOption) else str(error)
        yield fail("files", text, "a sidecar with them does not start", "correct them")


def same_user(pid: int) -> bool:
    """Whether a process is this user's."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid()  # noqa: PTH116 - a number, not a path of anybody's
    except OSError:
        return False
