"""``tieline invoke``: a call to an app through a sidecar, from the command line."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from tieline.cli.api import TOKEN_VARIABLE, BadToken, NotReached, ask, checked_token, shown, token_of
from tieline.cli.call import Body, Call, Report, perform
from tieline.cli.completion import complete_app_ids
from tieline.cli.numbers import MAX_TIMEOUT_S, finite
from tieline.cli.report import JsonReport, PlainReport
from tieline.cli.roster import ASK_TIMEOUT_S, Member, Status, matching, meant, members, rpc_address
from tieline.cli.wait import NO_CONTENT, OUTBOUND_PATH, Address
from tieline.errors import StartError

if TYPE_CHECKING:
    from tieline.cli.rpc_report import RpcReport

VERBS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT")
PIECE: Final = 65536
"""Bytes read at once of a file that is sent."""
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OURS: Final = frozenset({"content-length", "transfer-encoding", "connection", "upgrade", "expect", "te", "trailer"})
"""Headers by which HTTP frames a message: given by hand they would break the call."""
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
# All that may stand in a path or a query as it is (RFC 3986), and % for what is encoded already.
_SAFE: Final = "/:@!$&'()*+,;=-._~%?"


def _headers(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> list[tuple[str, str]]:
    """Read ``Name: value``; ``Name:`` means a header that is not sent, as with curl."""
    found: list[tuple[str, str]] = []
    for text in given:
        name, colon, value = text.partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.fullmatch(name):
            raise click.BadParameter(f"{text!r} is no header: write it like 'Name: value'.")
        if any((letter < " " and letter != "\t") or letter == "\x7f" for letter in value):
            raise click.BadParameter(f"the value of {name} holds a control character.")
        if name.lower() in _OURS:
            raise click.BadParameter(f"{name} is set by the command itself.")
        found.append((name, value))
    return found


def _verb(context: click.Context, parameter: click.Parameter, given: str) -> str:
    if given.upper() not in VERBS:
        raise click.BadParameter(f"{given!r} is no verb of HTTP: {', '.join(VERBS)}.")
    return given.upper()


def _address(context: click.Context, parameter: click.Parameter, given: str | None) -> tuple[str, int] | None:
    if given is None:
        return None
    text = given.removeprefix("http://").rstrip("/")
    host, _, port = text.rpartition(":")
    if (
        host.startswith("[") != host.endswith("]")
        or not host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port[:6]) < 65536
        or "/" in host
    ):
        raise click.BadParameter(f"{given!r} is no address: write it like 127.0.0.1:3500 or [::1]:3500.")
    return host.strip("[]"), int(port)


@click.command("invoke", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="APP-ID METHOD", shell_complete=complete_app_ids)
@click.option("--app-id", "-a", metavar="ID", shell_complete=complete_app_ids, help="The app, in place of an argument.")
@click.option("--method", "-m", metavar="METHOD", help="The method, in place of an argument.")
@click.option("--verb", "-v", callback=_verb, default="POST", metavar="VERB", help="HTTP verb; POST if not given.")
@click.option("--data", "-d", metavar="TEXT", help="Body.")
@click.option("--data-file", "-f", metavar="FILE", help="File with the body; - for standard input.")
@click.option(
    "--header", "-H", "headers", multiple=True, callback=_headers, metavar="'NAME: VALUE'", help="May be repeated."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, MAX_TIMEOUT_S, min_open=True),
    callback=finite,
    metavar="SECONDS",
    help="For the whole call.",
)
@click.option(
    "--from", "caller", metavar="ID", shell_complete=complete_app_ids, help="Call through this app's sidecar."
)
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="API port of the sidecar to use.")
@click.option("--address", callback=_address, metavar="HOST:PORT", help="The same on another host.")
@click.option("--unix-domain-socket", "-u", metavar="PATH", help="Socket of the sidecar to use, or its folder.")
@click.option("--api-token", metavar="TOKEN", help=f"The sidecar's API token; {TOKEN_VARIABLE} if not given.")
@click.option("--include", "-i", is_flag=True, help="Show status and headers of the answer before it.")
@click.option("--grpc", "as_rpc", is_flag=True, help="Call by gRPC, through the sidecar's gRPC port.")
@click.option(
    "--proto", metavar="FILE", help="Descriptor set of the service; the app is asked if not given. Implies --grpc."
)
@click.option("--output", "-o", type=click.Choice(["plain", "json"]), default="plain", help="json: one object.")
@click.option("--quiet", "-q", is_flag=True, help="No status lines; failures are told all the same.")
@click.option("--log-as-json", is_flag=True, help="Status lines as JSON.")
def command(words: Sequence[str], **given: Any) -> int:
    """Call a method of an app through a sidecar.

    The answer's body goes to standard output, as it comes and byte for byte; how the call went goes to standard
    error. Without --from or an address, another app's sidecar is used, so that the whole way is tried; else the
    app's own.

    \b
      tieline invoke mathService add -d '{"arg1": 10, "arg2": 23}'
      tieline invoke orders 'api/v1/orders?open=true' -v GET -i
      tail -f log | tieline invoke sink lines -f -
      tieline invoke orders shop.Orders/New --grpc -d '{"id": 1}'

    With --grpc, SERVICE/METHOD is an RPC of the app's own: JSON goes in, and a line of JSON comes out for each message.
    A method without a service is called by InvokeService. Headers are metadata, and ports are those of gRPC.

    \b
    Exit codes: 0 answered below 400 or OK, 1 answered otherwise or broke off,
    2 wrong arguments, 3 no sidecar reached, 4 timed out.
    """
    app_id, method = _whom(words, given["app_id"], given["method"])
    if given["data"] is not None and given["data_file"] is not None:
        raise click.UsageError("Only one of --data and --data-file allowed in the same invoke command.")
    ways = [f"--{name.replace('_', '-')}" for name in ("caller", "port", "address") if given[name] is not None]
    if len(ways) > 1:
        raise click.UsageError(f"{' and '.join(ways).replace('--caller', '--from')}: give one way to a sidecar.")
    if given["as_rpc"] or given["proto"] is not None:
        return _invoke_rpc(app_id, method, given)
    report: Report = JsonReport(app_id) if given["output"] == "json" else PlainReport(app_id, **_shown(given))
    token = _token(given)
    body, close = _body(given["data"], given["data_file"])
    try:
        found = _sidecar(app_id, given, report)
        if isinstance(found, int):
            return found
        address, through = found
        call = Call(
            address=address,
            verb=given["verb"],
            path=path_of(app_id, method),
            headers=_all_headers(given["headers"], token),
            body=body,
            timeout_s=given["timeout"],
        )
        report.calling(through, address)
        return perform(call, report)
    finally:
        close()


def _invoke_rpc(app_id: str, method: str, given: dict[str, Any]) -> int:
    """Call by gRPC."""
    # Here, since calls by HTTP need none of it.
    from tieline.cli import invoke_rpc
    from tieline.cli.rpc_report import JsonRpcReport, PlainRpcReport

    report: RpcReport = JsonRpcReport(app_id) if given["output"] == "json" else PlainRpcReport(app_id, **_shown(given))
    files = invoke_rpc.read_files(given["proto"])
    service, rpc = invoke_rpc.service_and_method(method, described=files is not None)
    if files is not None and not service:
        raise click.UsageError(f"{method!r} is no method that --proto could describe: write it like shop.Orders/New.")
    metadata, content_type = invoke_rpc.metadata_of(given["headers"], app_id, _token(given))
    body, close = _body(given["data"], given["data_file"])
    try:
        found = _sidecar(app_id, given, report, api="grpc")
        if isinstance(found, int):
            return found
        address, through = found
        call = invoke_rpc.RpcCall(
            address=address,
            app_id=app_id,
            method=method,
            service=service,
            rpc=rpc,
            verb=given["verb"],
            metadata=metadata,
            content_type=content_type,
            files=files,
            body=body,
            typed=given["data_file"] == "-",
            timeout_s=given["timeout"],
        )
        report.calling(through, address)
        return invoke_rpc.perform(call, report)
    finally:
        close()


def _shown(given: dict[str, Any]) -> dict[str, bool]:
    """Return how much is to be shown."""
    return {"include": given["include"], "quiet": given["quiet"], "as_json": given["log_as_json"]}


def _token(given: dict[str, Any]) -> str:
    token: str | None = given["api_token"]
    try:
        return token_of(os.environ) if token is None else checked_token(token, "--api-token")
    except BadToken as error:
        raise click.UsageError(f"{error}.") from error


def _whom(words: Sequence[str], app_id: str | None, method: str | None) -> tuple[str, str]:
    """Return app ID and method, each given by a flag or as an argument."""
    left = list(words)
    if app_id is None and left:
        app_id = left.pop(0)
    if method is None and left:
        method = left.pop(0)
    if left:
        raise click.UsageError(f"{left[0]!r} is one argument too many: give an app ID and a method.")
    missing = [f'"{name}"' for name, value in (("app-id", app_id), ("method", method)) if not value]
    if missing and not (app_id and method == ""):
        raise click.UsageError(f"required flag(s) {', '.join(missing)} not set: tieline invoke <app-id> <method>.")
    assert app_id is not None
    return app_id, method or ""


def path_of(app_id: str, method: str) -> str:
    """Return the path of an invocation: what may not stand in a URL is encoded, what is encoded already stays."""
    if app_id.startswith(("http://", "https://")):
        target = app_id.rstrip("/")
    else:
        target = quote(os.fsencode(app_id), safe=":@!$&'()*+,;=-._~")
    method = _ESCAPE.sub("%25", method.removeprefix("/"))
    return f"/v1.0/invoke/{target}/method/{quote(os.fsencode(method), safe=_SAFE)}"


def _all_headers(given: Sequence[tuple[str, str]], token: str) -> list[tuple[str, str]]:
    """Return the headers to send: ours where the user has none, and his, less those that he leaves empty."""
    names = {name.lower() for name, _ in given}
    ours = [("User-Agent", "tieline-invoke"), ("Content-Type", "application/json"), ("dapr-api-token", token)]
    headers = [(name, value) for name, value in ours if value and name.lower() not in names]
    return headers + [(name, value) for name, value in given if value]


def _body(data: str | None, file: str | None) -> tuple[Body | None, Callable[[], None]]:
    """Return the body, and what closes it."""
    if data is not None:
        raw = os.fsencode(data)
        return Body(iter([raw]) if raw else iter(()), len(raw)), lambda: None
    if file is None:
        return None, lambda: None
    try:
        # Unbuffered: pieces go out as they come, and a thread that waits for one holds no lock at the end.
        source = io.FileIO(0, closefd=False) if file == "-" else io.FileIO(file)
        status = os.fstat(source.fileno())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.UsageError(f"Error reading payload from '{file}'. Error: open {file}: {reason}.") from error
    # What is left of it, since a shell may hand over a file that was read in part.
    length = max(0, status.st_size - source.tell()) if stat.S_ISREG(status.st_mode) else None
    return Body(_pieces(source), length), source.close


def _pieces(source: io.FileIO) -> Iterator[bytes]:
    while piece := source.read(PIECE):
        yield piece


def _sidecar(
    app_id: str, given: dict[str, Any], report: Report | RpcReport, *, api: str = "http"
) -> tuple[Address, str] | int:
    """Find the sidecar to call: the address of an API and the app that it belongs to, empty if that is not known."""
    if given["unix_domain_socket"] is not None:
        return _socket(Path(given["unix_domain_socket"]), given["caller"], app_id, api), given["caller"] or ""
    address = ("127.0.0.1", given["port"]) if given["port"] is not None else given["address"]
    if address is not None:
        if api == "http" and (stranger := _stranger_at(address)):
            return report.not_reached(f"{shown(address)} is no HTTP API of a sidecar: {stranger}.")
        return address, ""
    try:
        everyone = members(os.environ)
    except StartError as error:
        return report.not_reached(f'{error}. Name a sidecar by --port, or see "tieline doctor".')
    report.knows(_about(matching(everyone, app_id)))
    usable = [member for member in everyone if member.is_serving and member.address is not None]
    if given["caller"] is not None:
        chosen = _best(matching(usable, given["caller"]))
        if chosen is None:
            known = list(dict.fromkeys(member.name for member in usable))
            told = f"running: {', '.join(known[:20])}" if known else "no sidecar runs"
            told += f". {question}" if (question := meant(usable, given["caller"])) else "."
            return report.not_reached(f"no sidecar of {given['caller']} runs here; {told}")
    else:
        own = matching(usable, app_id)
        others = [member for member in usable if member not in own]
        chosen = _best([member for member in others if member.status is not Status.SILENT]) or _best(own)
        chosen = chosen or _best(others)
        if chosen is None:
            return report.not_reached(
                "no sidecar of this user runs here to call through. Start one, "
                '"tieline run --app-id caller", or name one by --port or --address.'
            )
    if chosen.status is Status.SILENT:
        return report.not_reached(f"the sidecar of {chosen.name} does not answer: {chosen.detail}.")
    address = chosen.address if api == "http" else rpc_address(chosen.facts)
    if address is None:
        return report.not_reached(f"the sidecar of {chosen.name} has no gRPC port.")
    return address, chosen.name


def _stranger_at(address: Address) -> str:
    """Say why what answers at an address is no sidecar; empty if it is one, or does not answer at all."""
    try:
        answer = ask(address, "GET", OUTBOUND_PATH, timeout_s=ASK_TIMEOUT_S)
    except NotReached:
        return ""  # the call itself tells
    if answer.status == NO_CONTENT or (answer.status >= 500 and b'"errorCode"' in answer.body):
        return ""
    return f"{OUTBOUND_PATH} gives {answer.status} there; is it the port of the app itself"


def _about(same: Sequence[Member]) -> str:
    """Return what may be the matter with the called app, should the call fail; empty if nothing is known."""
    if not same or any(member.status in (Status.HEALTHY, Status.ANNOUNCED) for member in same):
        return ""
    member = _best([member for member in same if member.is_alive]) or same[-1]
    text = f"the sidecar of {member.name} is there, but {member.status.value}: {member.detail}"
    if member.status is Status.DEAD:
        return f"the sidecar of {member.name} is dead: {member.detail}"
    return text


def _best(found: Sequence[Member]) -> Member | None:
    """Return the one that most likely answers."""
    order = [Status.HEALTHY, Status.ANNOUNCED, Status.NOT_READY, Status.SILENT, Status.STOPPING]
    return min(found, key=lambda member: order.index(member.status), default=None)


def _socket(path: Path, caller: str | None, app_id: str, api: str) -> str:
    """Return the socket that is meant by a socket or a folder of sockets."""
    if not path.is_dir():
        return str(path)
    if caller is None:
        own = path / f"dapr-{app_id}-{api}.socket"
        others = sorted(other for other in path.glob(f"dapr-*-{api}.socket") if other != own)
        return str(others[0] if others and not own.exists() else own)
    return str(path / f"dapr-{caller}-{api}.socket")
