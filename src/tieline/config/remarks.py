"""What is worth a warning about a Configuration that loads: what in it does nothing, or less than it seems to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tieline.config.api_lists import GrpcLists, rule_faults
from tieline.config.configuration import Configuration
from tieline.config.decode import as_block, as_list

MTLS_IS_NO_SWITCH: Final = (
    "spec.mtls.enabled is true, but a sidecar does not switch mTLS on by it: calls go unencrypted; "
    "--enable-mtls asks for mTLS, which this version does not have"
)


def remarks(configuration: Configuration) -> tuple[str, ...]:
    """Return the warnings, one line each; what has no effect in this version is told apart from these."""
    return (*_unknown_keys(configuration), *_mtls(configuration), *_rules(configuration), *_rpcs(configuration))


def new_remarks(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Return the warnings about a Configuration that was read again which have not been given before."""
    said = set(remarks(old))
    return tuple(text for text in remarks(new) if text not in said)


def lost_protections(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Return a line for each protection that was in force by the old Configuration and is not by the new one."""
    return tuple(
        f"spec.api.{kind} is gone: the {len(as_list(old.api.get(kind)))} rules of it protect no longer, and "
        "the APIs that they closed are open now"
        for kind in ("allowed", "denied")
        if as_list(old.api.get(kind)) and not as_list(new.api.get(kind))
    )


def _unknown_keys(configuration: Configuration) -> Iterator[str]:
    for key, (place, guess) in configuration.unknown.items():
        hint = f'; did you mean "{guess}"?' if guess else ""
        yield f"not a key of a Configuration, so it does nothing: {key} ({place}{hint})"


def _mtls(configuration: Configuration) -> Iterator[str]:
    if configuration.asks_for_mtls:
        yield f"{MTLS_IS_NO_SWITCH} ({configuration.places['spec.mtls']})"


def _rules(configuration: Configuration) -> Iterator[str]:
    for kind in ("allowed", "denied"):
        for number, item in enumerate(as_list(configuration.api.get(kind)), 1):
            rule = as_block(item)
            name, version, protocol = (str(rule.get(key) or "") for key in ("name", "version", "protocol"))
            for fault in rule_faults(name, version, protocol):
                hint = f"; {fault.hint}" if fault.hint else ""
                place = configuration.places[f"spec.api.{kind}"]
                yield f"spec.api.{kind}: rule {number} of the list ({place}): {fault.text}{hint}"


def _rpcs(configuration: Configuration) -> Iterator[str]:
    """A list for HTTP only leaves the gRPC API open, which is not what it looks like (S-58)."""
    if GrpcLists(configuration.api).allows_nothing:
        place = configuration.places["spec.api.allowed"]
        yield (
            f"spec.api.allowed ({place}) has no rule for gRPC, which leaves the whole gRPC API open: "
            "name what may be called there by rules with protocol: grpc"
        )
