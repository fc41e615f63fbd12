"""``tieline sidecar``: the daemon, with the command line of ``daprd``."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence

from tieline import __version__
from tieline.config.doubts import doubts
from tieline.config.environment import Ports, own_environment
from tieline.config.fatal import FatalOption, UsageError
from tieline.config.options import Ask, Options, check, ineffective, parse_arguments, usage
from tieline.config.settings import Settings
from tieline.errors import ConfigError, StartError
from tieline.names.host import host_address, own_internal_port
from tieline.net.descriptors import raise_limit
from tieline.telemetry import logs

log = logging.getLogger("dapr.runtime")
GC_THRESHOLD = 20_000
"""New containers, beyond those freed, before the collector looks at them; the default costs 6 % of a call."""
FATAL_PREFIX = "Fatal error from runtime: "


def main(argv: Sequence[str]) -> int:
    """Run a sidecar until it is told to stop; return the exit code (H-148)."""
    try:
        options = parse_arguments(argv)
    except UsageError as error:
        hint = (error.hint,) if error.hint else ()
        print(*error.notices, usage("tieline sidecar", width=_width()), *hint, error, sep="\n", file=sys.stderr)
        return error.exit_code
    if isinstance(options, Ask):
        return _answer(options)
    for notice in options.notices:
        print(notice, file=sys.stderr)
    try:
        return _run(options)
    except StartError as error:
        text = str(error)
        if not isinstance(error, FatalOption):
            text = FATAL_PREFIX + text
        log.critical("%s", text)
        print(f"tieline sidecar: {text}", file=sys.stderr)
        return 1


def _asked_ports(settings: Settings) -> Ports:
    """The ports as asked for: what a Configuration file can refer to, before any is bound (N-3)."""
    internal = settings.internal_port
    if internal is None:
        internal = own_internal_port(settings.app_id)
    return Ports(http=settings.http_port, grpc=settings.grpc_port, internal=internal, metrics=settings.metrics_port)


def _answer(ask: Ask) -> int:
    if ask is Ask.HELP:
        print(usage("tieline sidecar", width=_width()), end="", file=sys.stderr)
    elif ask is Ask.VERSION:
        print(__version__)
    else:
        print(f"Version: {__version__}\nGit Commit: \nGit Version: ")
    return 0


def _width() -> int | None:
    """Return how wide standard error is; ``None`` if it is no terminal."""
    try:
        return os.get_terminal_size(2).columns - 1
    except OSError:
        return None


def _run(options: Options) -> int:
    if options.wait:
        from tieline.cli.wait import wait_outbound

        return wait_outbound(int(options.dapr_http_port or 3500))
    instance = socket.gethostname()
    try:
        logs.configure(
            level=options.log_level,
            as_json=options.log_as_json,
            log_file=options.log_file or None,
            app_id=options.app_id,
            instance=instance,
            version=__version__,
        )
    except ConfigError as error:
        raise FatalOption(str(error), prefix="") from error
    settings = check(options, os.environ)
    raise_limit()
    log.info("Starting Dapr Runtime -- version %s -- commit %s", __version__, "")
    log.info("Log level set to: %s", settings.log_level)
    from tieline.config.configuration import load_configuration

    if not settings.config_files:
        log.info("loading default configuration")
    os.environ.update(own_environment(settings, host_address(os.environ), _asked_ports(settings)))
    configuration = load_configuration(settings.config_files, os.environ)
    without = [*ineffective(options), *configuration.ineffective]
    if configuration.asks_for_mtls and "spec.mtls" in without:
        without.remove("spec.mtls")  # told apart
    if without:
        log.warning("given, but of no effect in this version of Tieline: %s", ", ".join(without))
    for doubt in doubts(options):
        log.warning("%s", doubt)
    if settings.config_files:
        from tieline.config.remarks import remarks

        for text in remarks(configuration):
            log.warning("%s", text)
    from tieline.net.loop import keep_freed_memory, run

    async def start() -> int:
        from tieline.sidecar import Sidecar

        # What start-up made stays for good, and calls leave no cycles behind: look for garbage rarely.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        return await Sidecar(settings, configuration, os.environ, __version__).run()

    keep_freed_memory()
    return run(start())
