"""The command line of the sidecar, which is daprd's: the table of options, what they give, and the later checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, get_args

from tieline.config.built import BUILT, Feature, Features
from tieline.config.duration import format_duration
from tieline.config.environment import Environment, read_environment
from tieline.config.fatal import FLAGS, FatalOption, ProtectionNotBuilt
from tieline.config.flags import Effect, Flag, Kind, describe_flags, parse_flags
from tieline.config.go_text import atoi
from tieline.config.quantity import parse_quantity
from tieline.config.settings import (
    DEFAULT_MAX_BODY,
    DEFAULT_PEER_IDLE_S,
    DEFAULT_PEER_SWEEP_S,
    DEFAULT_READ_BUFFER,
    LARGEST_READ_BUFFER,
    LOOPBACK,
    SHORTEST_PEER_SWEEP_S,
    AppProtocol,
    HealthChecks,
    InitEndpoint,
    LogLevel,
    Settings,
)

_TEXT, _NUMBER, _SWITCH, _DURATION, _LIST = Kind.TEXT, Kind.NUMBER, Kind.SWITCH, Kind.DURATION, Kind.LIST

OPTIONS: Final[Mapping[str, Flag]] = {
    flag.name: flag
    for flag in (
        # the app
        Flag("app-id", _TEXT, "", "ID by which other apps call this one; required, without dots"),
        Flag("app-port", _TEXT, "", "Port on which the app listens; none means that there is no app"),
        Flag("app-protocol", _TEXT, "http", "Protocol of the app: http, https, h2c, grpc or grpcs"),
        Flag("app-ssl", _SWITCH, False, "The app uses TLS", deprecated="use '--app-protocol https|grpcs'"),
        Flag("app-channel-address", _TEXT, "127.0.0.1", "Host on which the app listens"),
        Flag("app-max-concurrency", _NUMBER, -1, "Most calls to the app at one time; -1 and 0 for no limit"),
        Flag("enable-app-health-check", _SWITCH, False, "Probe the app's health", Feature.APP_HEALTH),
        Flag(
            "app-health-check-path", _TEXT, "/healthz", "Path of the health probe; HTTP apps only", Feature.APP_HEALTH
        ),
        Flag("app-health-probe-interval", _NUMBER, 5, "Seconds between health probes", Feature.APP_HEALTH),
        Flag("app-health-probe-timeout", _NUMBER, 500, "Milliseconds that a probe may take", Feature.APP_HEALTH),
        Flag("app-health-threshold", _NUMBER, 3, "Failed probes that make the app unhealthy", Feature.APP_HEALTH),
        Flag("app-binding-options-timeout", _DURATION, 3.0, "Time for finding input bindings", Feature.BINDINGS),
        Flag("disable-init-endpoints", _LIST, (), "Do not call these of the app at its start: config, subscribe"),
        Flag("map-grpc-status", _SWITCH, False, "Map errors of gRPC apps to HTTP statuses", Feature.GRPC_APPS),
        # the APIs
        Flag("dapr-http-port", _TEXT, "3500", "Port of the HTTP API; 0 for any free one"),
        Flag("dapr-grpc-port", _TEXT, "50001", "Port of the gRPC API; 0 for any free one", Feature.GRPC_API),
        Flag("dapr-listen-addresses", _TEXT, "", "Addresses of both APIs, comma separated; loopback if not given"),
        Flag("unix-domain-socket", _TEXT, "", "Folder for sockets that replace the APIs' TCP ports"),
        Flag("max-body-size", _TEXT, "4Mi", "Longest request body, e.g. 16Mi; 0 for no limit"),
        Flag(
            "dapr-http-max-request-size",
            _NUMBER,
            4,
            "Longest request body in MB",
            deprecated="use '--max-body-size 4Mi'",
        ),
        Flag("read-buffer-size", _TEXT, "4Ki", "Longest request head, less 4 KiB; 0 for 1Mi"),
        Flag(
            "dapr-http-read-buffer-size",
            _NUMBER,
            4,
            "Longest request head in KB, less 4",
            deprecated="use '--read-buffer-size 4Ki'",
        ),
        Flag(
            "allowed-origins",
            _TEXT,
            "",
            "Origins that browsers may call from, comma separated, e.g. http://localhost:5173",
            Feature.CORS,
        ),
        Flag("enable-api-logging", _SWITCH, None, "Log each API call", Feature.API_LOG),
        # other listeners
        Flag("dapr-internal-grpc-port", _TEXT, "", "Port for other sidecars; derived from the app ID if not given"),
        Flag("dapr-internal-grpc-listen-address", _TEXT, "", "Address for other sidecars; loopback if not given"),
        Flag("dapr-public-port", _TEXT, "", "Port that serves health and metadata only", Feature.PUBLIC_PORT),
        Flag("dapr-public-listen-address", _TEXT, "", "Address of the public port", Feature.PUBLIC_PORT),
        Flag("no-mdns", _SWITCH, False, "Find and be found without multicast, by the registry of this host only"),
        Flag("enable-metrics", _SWITCH, True, "Serve metrics", Feature.METRICS),
        Flag("metrics-port", _TEXT, "9090", "Port of the metrics; 0 for any free one", Feature.METRICS),
        Flag("metrics-listen-address", _TEXT, "", "Address of the metrics; loopback if not given", Feature.METRICS),
        Flag("enable-profiling", _SWITCH, False, "Serve profiles", Feature.PROFILING),
        Flag("profile-port", _TEXT, "7777", "Port of the profiles", Feature.PROFILING),
        # files
        Flag("config", _LIST, (), "Configuration file; of several, later ones are laid over earlier ones"),
        Flag("resources-path", _LIST, (), "Folder of resource files", Feature.RESOURCES),
        Flag(
            "components-path",
            _TEXT,
            "",
            "Folder of resource files",
            Feature.RESOURCES,
            deprecated="use --resources-path",
        ),
        Flag(
            "hot-reload-reconcile-interval", _DURATION, 0.0, "Has no use: files are looked at often", Feature.HOT_RELOAD
        ),
        # the process
        Flag("mode", _TEXT, "standalone", "Where the sidecar runs"),
        Flag("dapr-graceful-shutdown-seconds", _NUMBER, 5, "Longest wait for calls in flight; 0 for no limit"),
        Flag("dapr-block-shutdown-duration", _DURATION, None, "Go on serving for so long after a signal to stop"),
        Flag("log-level", _TEXT, "info", "Least level that is logged: debug, info, warn, error or fatal"),
        Flag("log-as-json", _SWITCH, False, "Log JSON, an object a line"),
        Flag("log-file", _TEXT, "", "File to append the log to, in place of standard output"),
        Flag("version", _SWITCH, False, "Print the version"),
        Flag("build-info", _SWITCH, False, "Print what was built"),
        Flag("wait", _SWITCH, False, "Wait until the sidecar on --dapr-http-port is ready, and start none"),
        # identity
        Flag("enable-mtls", _SWITCH, False, "Let sidecars prove who they are", Feature.MTLS, protects=True),
        Flag("sentry-address", _TEXT, "", "Address of the certificate authority", Feature.MTLS),
        Flag("control-plane-trust-domain", _TEXT, "localhost", "Trust domain of the authority", Feature.MTLS),
        Flag("control-plane-namespace", _TEXT, "default", "Namespace of the authority", Feature.MTLS),
        Flag("sentry-request-jwt-audiences", _LIST, (), "Audiences to ask the authority for", Feature.MTLS),
        # what Tieline leaves to others
        Flag("control-plane-address", _TEXT, "", "Address of the operator", Feature.KUBERNETES),
        Flag("disable-builtin-k8s-secret-store", _SWITCH, False, "No Kubernetes secret store", Feature.KUBERNETES),
        Flag("placement-host-address", _TEXT, "", "Address of the placement service", Feature.ACTORS),
        Flag("scheduler-host-address", _LIST, (), "Addresses of the scheduler", Feature.ACTORS),
        Flag("scheduler-job-streams", _NUMBER, 3, "Streams to the scheduler", Feature.ACTORS),
        Flag("actors-disseminate-timeout", _DURATION, 30.0, "Time for placement tables", Feature.ACTORS),
        Flag("actors-service", _TEXT, "", "Kind and address of the placement service", Feature.ACTORS, hidden=True),
        Flag("reminders-service", _TEXT, "", "Kind and address of the reminders service", Feature.ACTORS, hidden=True),
    )
}


class Ask(Enum):
    """What a command line can ask for in place of a sidecar; all end with exit code 0."""

    HELP = "help"
    VERSION = "version"
    BUILD_INFO = "build-info"


class Options(NamedTuple):
    """The command line as it parsed, unchecked: ports and sizes are still text. A field for each row of ``OPTIONS``.

    A tuple, because a frozen dataclass of so many fields takes three times as long to define, at every start.

    Attributes:
        given: Names of the options that stand on the command line.
        notices: Lines for stderr about deprecated options.
        ignored: Arguments that belong to no option.
    """

    given: frozenset[str]
    notices: tuple[str, ...]
    ignored: tuple[str, ...]

    actors_disseminate_timeout: float
    actors_service: str
    allowed_origins: str
    app_binding_options_timeout: float
    app_channel_address: str
    app_health_check_path: str
    app_health_probe_interval: int
    app_health_probe_timeout: int
    app_health_threshold: int
    app_id: str
    app_max_concurrency: int
    app_port: str
    app_protocol: str
    app_ssl: bool
    build_info: bool
    components_path: str
    config: tuple[str, ...]
    control_plane_address: str
    control_plane_namespace: str
    control_plane_trust_domain: str
    dapr_block_shutdown_duration: float | None
    dapr_graceful_shutdown_seconds: int
    dapr_grpc_port: str
    dapr_http_max_request_size: int
    dapr_http_port: str
    dapr_http_read_buffer_size: int
    dapr_internal_grpc_listen_address: str
    dapr_internal_grpc_port: str
    dapr_listen_addresses: str
    dapr_public_listen_address: str
    dapr_public_port: str
    disable_builtin_k8s_secret_store: bool
    disable_init_endpoints: tuple[str, ...]
    enable_api_logging: bool | None
    enable_app_health_check: bool
    enable_metrics: bool
    enable_mtls: bool
    enable_profiling: bool
    hot_reload_reconcile_interval: float
    log_as_json: bool
    log_file: str
    log_level: str
    map_grpc_status: bool
    max_body_size: str
    metrics_listen_address: str
    metrics_port: str
    mode: str
    no_mdns: bool
    placement_host_address: str
    profile_port: str
    read_buffer_size: str
    reminders_service: str
    resources_path: tuple[str, ...]
    scheduler_host_address: tuple[str, ...]
    scheduler_job_streams: int
    sentry_address: str
    sentry_request_jwt_audiences: tuple[str, ...]
    unix_domain_socket: str
    version: bool
    wait: bool


def parse_arguments(argv: Sequence[str]) -> Options | Ask:
    """Read the arguments, without the program's name (H-9). Values of text options are looked at by ``check``.

    Raises:
        UsageError: H-151 (a).
    """
    parsed = parse_flags(OPTIONS, argv)
    if parsed.wants_help:
        return Ask.HELP
    # The table decides which kind each value has; a test holds fields and table together.
    values: dict[str, Any] = {name.replace("-", "_"): value for name, value in parsed.values.items()}
    options = Options(given=parsed.given, notices=parsed.notices, ignored=parsed.ignored, **values)
    if options.version:
        return Ask.VERSION
    if options.build_info:
        return Ask.BUILD_INFO
    return options


def usage(program: str, built: Features = BUILT, width: int | None = None) -> str:
    """Return the usage text, ending in a newline; ``width`` is a terminal's."""
    return f"Usage of {program}:\n{describe_flags(OPTIONS.values(), built, width)}"


def ineffective(options: Options, built: Features = BUILT) -> tuple[str, ...]:
    """Return the options, as ``--name``, that are given and do nothing in this version.

    A switch set to false asks for nothing, so it is not among them.
    """
    return tuple(
        f"--{name}"
        for name in sorted(options.given)
        if OPTIONS[name].effect(built) is Effect.IGNORED and _value(options, name) is not False
    )


def check(options: Options, environ: Mapping[str, str], *, built: Features = BUILT) -> Settings:
    """Check what the command line and the environment say, in daprd's order, and return it typed.

    Raises:
        FatalOption: A value cannot be used (H-11, H-12, H-151 b).
        ProtectionNotBuilt: A protection is asked for that is not in ``built``.
    """
    max_body_size = _max_body_size(options)
    read_buffer_size = _read_buffer_size(options)
    _check_disseminate_timeout(options)
    log_level = _log_level(options)
    _check_app_id(options.app_id)
    _check_mode(options.mode)
    ports = _ports(options)
    app_protocol = _app_protocol(options)
    disable_init_endpoints = _init_endpoints(options)
    health_checks = _health_checks(options)
    environment = read_environment(environ)
    _check_environment(environment)
    _refuse_unbuilt_protection(options, environment, built)
    grace = options.dapr_graceful_shutdown_seconds
    block = options.dapr_block_shutdown_duration
    return Settings(
        app_id=options.app_id,
        namespace=environment.namespace,
        mode="standalone",
        app_port=ports.app,
        app_protocol=app_protocol,
        app_channel_address=options.app_channel_address,
        app_max_concurrency=max(options.app_max_concurrency, 0),
        health_checks=health_checks,
        disable_init_endpoints=disable_init_endpoints,
        app_api_token=environment.app_api_token,
        map_grpc_status=options.map_grpc_status,
        http_port=ports.http,
        grpc_port=ports.grpc,
        listen_addresses=_listen_addresses(options),
        unix_domain_socket=options.unix_domain_socket or None,
        max_body_size=max_body_size,
        read_buffer_size=read_buffer_size,
        allowed_origins=tuple(options.allowed_origins.split(",")) if options.allowed_origins else (),
        enable_api_logging=options.enable_api_logging,
        api_token=environment.api_token,
        http_disable_h2c=environment.http_disable_h2c,
        internal_port=ports.internal,
        internal_listen_address=_internal_listen_address(options),
        enable_mtls=options.enable_mtls,
        host_ip=environment.host_ip,
        peer_idle_s=_seconds("DAPR_GRPC_MAX_CONN_IDLE", environment.peer_idle, DEFAULT_PEER_IDLE_S),
        peer_sweep_s=max(
            _seconds("DAPR_GRPC_CONN_COLLECTOR_INTERVAL", environment.peer_sweep, DEFAULT_PEER_SWEEP_S),
            SHORTEST_PEER_SWEEP_S,
        ),
        no_mdns=options.no_mdns,
        public_port=ports.public,
        public_listen_address=options.dapr_public_listen_address,
        enable_metrics=options.enable_metrics,
        metrics_port=ports.metrics,
        metrics_listen_address=options.metrics_listen_address if "metrics-listen-address" in options.given else None,
        enable_profiling=options.enable_profiling,
        profile_port=ports.profile,
        config_files=options.config,
        resources_paths=_resources_paths(options),
        graceful_shutdown_s=None if grace == 0 else 5.0 if grace < 0 else float(grace),
        block_shutdown_s=None if block is None else max(block, 0.0),
        log_level=log_level,
        log_as_json=options.log_as_json,
        log_file=options.log_file or None,
    )


# --- sizes and times -------------------------------------------------------------------------------------------------


def _max_body_size(options: Options) -> int | None:
    size = _size(options, "max-body-size", options.dapr_http_max_request_size, "dapr-http-max-request-size", 1 << 20)
    return DEFAULT_MAX_BODY if size == -1 else size if size > 0 else None


def _read_buffer_size(options: Options) -> int:
    size = _size(options, "read-buffer-size", options.dapr_http_read_buffer_size, "dapr-http-read-buffer-size", 1 << 10)
    return DEFAULT_READ_BUFFER if size == -1 else size if size > 0 else LARGEST_READ_BUFFER


def _size(options: Options, name: str, twin: int, twin_name: str, unit: int) -> int:
    """Return a size in bytes; the deprecated twin counts only where the newer option is absent. -1 is the default."""
    if name not in options.given and twin_name in options.given:
        return twin if twin == -1 else twin * unit
    text = options.max_body_size if name == "max-body-size" else options.read_buffer_size
    try:
        return parse_quantity(text)
    except ValueError as error:
        text = f"invalid value for '{name}' option: {error}; give bytes, such as 4194304, 4Mi or 500k"
        raise FatalOption(text, FLAGS) from error


def _check_disseminate_timeout(options: Options) -> None:
    timeout_s = options.actors_disseminate_timeout
    if timeout_s <= 0:
        raise FatalOption(
            "invalid value for 'actors-disseminate-timeout' option: "
            f"must be positive, got {format_duration(timeout_s)}",
            FLAGS,
        )


def _health_checks(options: Options) -> HealthChecks:
    interval_s = float(options.app_health_probe_interval if options.app_health_probe_interval > 0 else 5)
    timeout_s = (options.app_health_probe_timeout if options.app_health_probe_timeout > 0 else 500) / 1000
    if timeout_s > interval_s:
        raise FatalOption("value for 'health-probe-timeout' must be smaller than 'health-probe-interval'")
    path = options.app_health_check_path
    return HealthChecks(
        enabled=options.enable_app_health_check,
        path=path if path.startswith("/") else "/" + path,
        interval_s=interval_s,
        timeout_s=timeout_s,
        threshold=options.app_health_threshold if options.app_health_threshold >= 1 else 3,
    )


# --- words -----------------------------------------------------------------------------------------------------------


def _check_app_id(app_id: str) -> None:
    if not app_id:
        raise FatalOption("parameter app-id cannot be empty")
    if "." in app_id:
        raise FatalOption("parameter app-id cannot contain dots")
    if not app_id.isprintable():
        # It travels in header fields: none that names it could ever be sent.
        raise FatalOption("parameter app-id cannot contain control characters, or bytes that are no UTF-8")


def _check_environment(environment: Environment) -> None:
    travels = {
        "NAMESPACE": environment.namespace,
        "APP_API_TOKEN": environment.app_api_token,
        "DAPR_HOST_IP": environment.host_ip,
    }
    if environment.api_token is not None:
        _check_api_token(environment.api_token)
    for name, value in travels.items():
        if value is not None and not value.isprintable():
            raise FatalOption(
                f"the environment's {name} has a control character, such as a line end, or is no UTF-8: correct it"
            )


def _check_api_token(token: str) -> None:
    """Refuse what no header could equal, so that nobody is kept out for good; the value is shown to nobody."""
    if any((letter < " " and letter != "\t") or letter == "\x7f" for letter in token):
        raise FatalOption(
            "the environment's DAPR_API_TOKEN has a control character, such as a line end: "
            "no request could ever show it; set it without"
        )
    if token != token.strip(" \t"):
        raise FatalOption(
            "the environment's DAPR_API_TOKEN begins or ends with a blank: no request could ever show it; "
            "set it without"
        )


def _seconds(name: str, text: str | None, default: float) -> float:
    """Return the length of time that a variable of the environment gives, or the usual one."""
    if text is None:
        return default
    from tieline.config.duration import parse_duration  # few starts need it

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise FatalOption(f"the environment's {name} is no duration: {error}; write it as 3m or 45s") from error
    if seconds < 0:
        raise FatalOption(f"the environment's {name} is below zero: {text}; write it as 3m or 45s")
    return seconds


def _check_mode(mode: str) -> None:
    if mode == "kubernetes":
        raise FatalOption("mode kubernetes is not part of this version; leave out --mode, or give standalone")
    if mode != "standalone":
        raise FatalOption(f"invalid mode: {mode}")


def _log_level(options: Options) -> LogLevel:
    word = options.log_level.lower()
    for level in get_args(LogLevel):
        if word == level:
            found: LogLevel = level
            return found
    text = f"invalid value for --log-level: {options.log_level}; {_one_of(get_args(LogLevel))}"
    raise FatalOption(text, prefix="")


def _app_protocol(options: Options) -> AppProtocol:
    word = options.app_protocol.lower()
    if options.app_ssl:
        word = {"http": "https", "grpc": "grpcs"}.get(word, word)
    for protocol in get_args(AppProtocol):
        if word == protocol:
            found: AppProtocol = protocol
            return found
    text = f"invalid value for 'app-protocol': {options.app_protocol}; {_one_of(get_args(AppProtocol))}"
    raise FatalOption(text)


def _one_of(words: Sequence[str]) -> str:
    return f"give {', '.join(words[:-1])} or {words[-1]}"


def _init_endpoints(options: Options) -> frozenset[InitEndpoint]:
    found: set[InitEndpoint] = set()
    for item in options.disable_init_endpoints:
        match item.strip().lower():
            case "":
                pass
            case ("config" | "subscribe") as endpoint:
                found.add(endpoint)
            case _:
                text = f"invalid value for 'disable-init-endpoints': {item}; {_one_of(get_args(InitEndpoint))}"
                raise FatalOption(text)
    return frozenset(found)


# --- ports and addresses ---------------------------------------------------------------------------------------------


class _Ports(NamedTuple):
    http: int
    grpc: int
    profile: int
    internal: int | None
    public: int | None
    app: int | None
    metrics: int


_NO_LISTENER: Final = "failed to start {}: could not listen on any endpoint"


def _ports(options: Options) -> _Ports:
    http = _number(options.dapr_http_port, "error parsing dapr-http-port flag")
    grpc = _number(options.dapr_grpc_port, "error parsing dapr-grpc-port flag")
    profile = _number(options.profile_port, "error parsing profile-port flag")
    internal = _number(options.dapr_internal_grpc_port or "0", "error parsing dapr-internal-grpc-port")
    public = _number(options.dapr_public_port or "0", "error parsing dapr-public-port")
    app = _number(options.app_port or "0", "error parsing app-port")
    _check_conflicts(options, app, http, grpc)
    metrics = _number(options.metrics_port, "failed to parse metrics port")
    return _Ports(
        http=_in_range("dapr-http-port", http, _NO_LISTENER.format("HTTP server")),
        grpc=_in_range("dapr-grpc-port", grpc, _NO_LISTENER.format("API gRPC server")),
        internal=_in_range("dapr-internal-grpc-port", internal, _NO_LISTENER.format("internal gRPC server")) or None,
        public=_in_range("dapr-public-port", public, "error parsing dapr-public-port") if public else None,
        # Below 1 there is no app, as daprd has it; above the range it would wait for ever.
        app=_in_range("app-port", app, "error parsing app-port") if app > 0 else None,
        metrics=_in_range("metrics-port", metrics, "failed to parse metrics port"),
        profile=_in_range("profile-port", profile, "error parsing profile-port flag"),
    )


def _number(text: str, error_text: str) -> int:
    try:
        return atoi(text)
    except ValueError as error:
        raise FatalOption(f"{error_text}: {error}; give a number from 0 to 65535") from error


def _in_range(name: str, port: int, error_text: str) -> int:
    if not 0 <= port <= 65535:
        raise FatalOption(f"{error_text}: --{name} {port} is no port (0 to 65535)")
    return port


def _check_conflicts(options: Options, app: int, http: int, grpc: int) -> None:
    """Refuse two listeners on one port. 0 is any free port, so it conflicts with nothing (H-12, repaired)."""
    if app and app == http:
        raise FatalOption(f"the 'dapr-http-port' argument value {http} conflicts with 'app-port'")
    if app and app == grpc:
        raise FatalOption(f"the 'dapr-grpc-port' argument value {grpc} conflicts with 'app-port'")
    if http and http == grpc and not options.unix_domain_socket:
        raise FatalOption(
            _NO_LISTENER.format("HTTP server") + f": --dapr-http-port and --dapr-grpc-port are both {http}"
        )


def _listen_addresses(options: Options) -> tuple[str, ...]:
    if "dapr-listen-addresses" not in options.given:
        return LOOPBACK
    return tuple(options.dapr_listen_addresses.split(","))


def _internal_listen_address(options: Options) -> str | None:
    given = "dapr-internal-grpc-listen-address" in options.given
    return options.dapr_internal_grpc_listen_address if given else None


def _resources_paths(options: Options) -> tuple[str, ...]:
    if options.resources_path or not options.components_path:
        return options.resources_path
    return (options.components_path,)


# --- protections -----------------------------------------------------------------------------------------------------


def _refuse_unbuilt_protection(options: Options, environment: Environment, built: Features) -> None:
    for name, flag in OPTIONS.items():
        if flag.effect(built) is Effect.PROTECTS and _value(options, name):
            raise ProtectionNotBuilt(
                f"--{name} is given, but this version does not enforce {flag.feature}; "
                "leave it out to run without that protection"
            )
    if environment.api_token and Feature.API_TOKEN not in built:
        raise ProtectionNotBuilt(
            f"DAPR_API_TOKEN is set, but this version does not enforce {Feature.API_TOKEN}; "
            "unset it to run without that protection"
        )


def _value(options: Options, name: str) -> object:
    value: object = getattr(options, name.replace("-", "_"))
    return value
