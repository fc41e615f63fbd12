"""What a sidecar runs by: the options and the environment, checked and typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

AppProtocol: TypeAlias = Literal["http", "https", "h2c", "grpc", "grpcs"]
LogLevel: TypeAlias = Literal["debug", "info", "warn", "error", "fatal"]
InitEndpoint: TypeAlias = Literal["config", "subscribe"]

DEFAULT_MAX_BODY: Final = 4 << 20
DEFAULT_READ_BUFFER: Final = 4 << 10
LARGEST_READ_BUFFER: Final = 1 << 20
"""Taken where the option says 0, in bytes (H-63)."""
DEFAULT_PEER_IDLE_S: Final = 180.0
DEFAULT_PEER_SWEEP_S: Final = 45.0
SHORTEST_PEER_SWEEP_S: Final = 0.01
LOOPBACK: Final = ("127.0.0.1", "[::1]")
"""Where the API listens when no address is given: a laptop in a café offers nothing."""


class HealthChecks(NamedTuple):
    """How the app's health is to be probed.

    Attributes:
        path: Path with its leading slash; HTTP apps only.
        threshold: Failed probes after which the app counts as unhealthy, ≥ 1.
    """

    enabled: bool
    path: str
    interval_s: float
    timeout_s: float
    threshold: int


# No repr: it would show the tokens. No eq either: nobody compares, and both cost time at every start.
@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Settings:
    """Everything that one start of a sidecar is told, checked. Addresses are as given, IPv6 in brackets.

    Attributes:
        namespace: ``default`` if the environment has no ``NAMESPACE``; empty if it has an empty one.
        app_port: ``None`` for a sidecar without an app.
        app_channel_address: Host at which the app is reached.
        app_max_concurrency: Most calls to the app at one time; 0 for no limit.
        http_port: API port; 0 for any free one.
        grpc_port: Port of the gRPC API; 0 for any free one.
        internal_port: Port for other sidecars; ``None`` to derive one (H-5).
        internal_listen_address: ``None`` if not given (loopback unless mTLS is on); empty for all interfaces.
        listen_addresses: For both APIs, ``LOOPBACK`` if not given; an empty item means all interfaces.
        peer_idle_s: A connection to another sidecar, or to an app that speaks gRPC, is closed after this time without
            calls (G-6).
        peer_sweep_s: How often such connections are looked for.
        public_port: ``None`` for no public listener.
        public_listen_address: Empty for all interfaces.
        metrics_port: 0 for any free one.
        metrics_listen_address: ``None`` if not given, which is loopback; empty for all interfaces.
        unix_domain_socket: Folder for the APIs' sockets, which then replace TCP (H-2); ``None`` for TCP.
        max_body_size: Longest request body in bytes; ``None`` for no limit.
        read_buffer_size: In bytes; the limit of a request head is 4096 more (H-63).
        allowed_origins: Items of the CORS list, untrimmed; none switches CORS off.
        enable_api_logging: ``None`` leaves it to the Configuration.
        config_files: Configuration files, in the order in which they are laid over one another.
        graceful_shutdown_s: Longest wait for calls in flight; ``None`` for no limit.
        block_shutdown_s: Length of the blocking phase before a shutdown (H-146); ``None`` for no such phase.
        log_file: ``None`` for standard output.
        disable_init_endpoints: Paths of the app that are not called at its start.
        api_token: Token that API callers must show; ``None`` for none.
        app_api_token: Token that the app is shown; ``None`` for none.
        host_ip: Own address as the user gave it; ``None`` to find out.
        no_mdns: The default resolvers are the registry of this host alone.
        http_disable_h2c: No cleartext HTTP/2 on the HTTP API port (H-3).
        map_grpc_status: Finer HTTP statuses for errors of gRPC apps (A-11).
    """

    app_id: str
    namespace: str
    mode: Literal["standalone"]

    app_port: int | None
    app_protocol: AppProtocol
    app_channel_address: str
    app_max_concurrency: int
    health_checks: HealthChecks
    disable_init_endpoints: frozenset[InitEndpoint]
    app_api_token: str | None
    map_grpc_status: bool

    http_port: int
    grpc_port: int
    listen_addresses: tuple[str, ...]
    unix_domain_socket: str | None
    max_body_size: int | None
    read_buffer_size: int
    allowed_origins: tuple[str, ...]
    enable_api_logging: bool | None
    api_token: str | None
    http_disable_h2c: bool

    internal_port: int | None
    internal_listen_address: str | None
    enable_mtls: bool
    host_ip: str | None
    no_mdns: bool
    peer_idle_s: float
    peer_sweep_s: float

    public_port: int | None
    public_listen_address: str
    enable_metrics: bool
    metrics_port: int
    metrics_listen_address: str | None
    enable_profiling: bool
    profile_port: int

    config_files: tuple[str, ...]
    resources_paths: tuple[str, ...]

    graceful_shutdown_s: float | None
    block_shutdown_s: float | None

    log_level: LogLevel
    log_as_json: bool
    log_file: str | None
