"""What a command line may say and hardly means: accepted, as by daprd, and told at the start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tieline.config.fatal import one_line
from tieline.config.options import Options

_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+")
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_~-]+")
_FOUR_NUMBERS: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
MAX_SHOWN: Final = 100
"""Letters shown of what was left over."""


def doubts(options: Options) -> Iterator[str]:
    """Return a sentence on each thing that is most likely a mistake."""
    if options.ignored:
        shown = _short(one_line(" ".join(options.ignored)))
        yield (
            f"ignored, as it belongs to no option: {shown}; a sidecar starts no app: "
            "tieline run --app-id <app-id> -- <command> does"
        )
    if not _PLAIN_ID.fullmatch(options.app_id):
        yield (
            f"the app ID {options.app_id!r} has characters that callers must percent-encode in URLs; "
            "letters, digits and dashes need no care"
        )
    has_app = options.app_port.strip() not in ("", "0")
    if options.enable_app_health_check and not has_app:
        yield "--enable-app-health-check does nothing without an app; give --app-port"
    if options.app_max_concurrency < -1:
        yield f"--app-max-concurrency {options.app_max_concurrency} means no limit, as -1 and 0 do"
    host = options.app_channel_address
    if _FOUR_NUMBERS.fullmatch(host) and any(int(part) > 255 for part in host.split(".")):
        yield f"--app-channel-address {host} is no address: a number of it is over 255; the app will not be found there"
    for origin in options.allowed_origins.split(",") if options.allowed_origins else ():
        if "*" not in origin and not _ORIGIN.fullmatch(origin):
            yield (
                f"--allowed-origins: {origin!r} is no origin, so no web page matches it; "
                "write scheme and host, such as https://example.com or http://localhost:8080, and no blanks"
            )


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
