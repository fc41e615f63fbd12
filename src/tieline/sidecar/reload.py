"""Puts changed files in force while the sidecar runs: resource files as they change, all files at a hang-up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from tieline.config.configuration import load_configuration
from tieline.config.fatal import FatalOption
from tieline.config.resource_set import Resources
from tieline.config.settings import Settings
from tieline.errors import StartError
from tieline.net.watch import Watch
from tieline.sidecar.parts import Parts
from tieline.wire.url import BadUrl, parse_url

log = logging.getLogger("dapr.runtime")
_loader_log = logging.getLogger("dapr.runtime.loader.disk")
_reload_log = logging.getLogger("dapr.runtime.hotreload")

HOT_RELOAD: Final = "HotReload"
"""Feature that watches the folders of resource files (C-67)."""
LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
"""Of notices about resource files."""
CHANGED_IN_PLACE: Final = frozenset(
    {
        "spec.tracing",
        "spec.features",
        "spec.logging.apiLogging",
        "spec.components",
        "spec.api",
        "spec.metric",
    }
)
"""Blocks of a Configuration that take effect without a new start."""
_OF_THE_APIS: Final = frozenset({"spec.api", "spec.logging.apiLogging", "spec.tracing"})


class Files:
    """The files of the user: read at the start, and again.

    Args:
        swap_apis: Makes the APIs anew, as the Configuration wants them now.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        environ: Mapping[str, str],
        *,
        swap_apis: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._environ = environ
        self._swap_apis = swap_apis
        self._resources = Resources()
        self._watch = Watch(lambda: self._resources.look(), self._changed)

    # ── at the start ───────────────────────────────────────────────────────────────────────────────
    def load(self) -> None:
        """Read the resource files; a mistake in one ends the start only where it must.

        Raises:
            StartError: A folder cannot be read.
        """
        if not self._settings.resources_paths:
            return
        resources = self._read(None)
        for level, text in resources.notices:
            _loader_log.log(LEVELS[level], "%s", text)
        for name in resources.http_endpoints:
            log.info("Found http endpoint: %s", name)
        self._use(resources)

    def watch(self) -> None:
        """Watch the folders, unless there are none or the user does not want it (C-67)."""
        folders = self._resources.folders
        if self._watches and folders:
            _reload_log.info("Watching directories: [%s]", " ".join(folders))
            self._watch.start(self._resources.seen)
        else:
            self._watch.stop()

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        self._watch.stop()

    def _read(self, previous: Resources | None) -> Resources:
        from tieline.config.resources import load_resources  # costs milliseconds that other starts need not pay

        return load_resources(
            self._settings.resources_paths,
            app_id=self._settings.app_id,
            environ=self._environ,
            denied=self._parts.configuration.denied_components,
            watch=self._watches,
            previous=previous,
            wrong_url=_wrong_url,
        )

    def _use(self, resources: Resources) -> None:
        """Let calls from now on see these; those in progress end as they began."""
        self._resources = resources
        self._parts.external.replace(resources.http_endpoints)
        self._parts.metadata.http_endpoints = tuple(resources.http_endpoints)

    @property
    def _watches(self) -> bool:
        return HOT_RELOAD in self._parts.configuration.enabled_features()

    # ── later ──────────────────────────────────────────────────────────────────────────────────────
    def reload(self) -> None:
        """Read all files anew, and put what changed in force without a new start (C-71)."""
        whole = not self._settings.config_files or self._reload_configuration()
        whole = self._reload_resources() and whole
        self._watch.stop()
        self.watch()
        told = "Reloaded" if whole else "Reloaded, except what stays as it was"
        _reload_log.info("%s; nothing was restarted", told)

    def _changed(self, seen: Mapping[str, object]) -> Mapping[str, object]:
        # What cannot be read counts as seen: it is told of once, and read when it changes again.
        return self._resources.seen if self._reload_resources() else seen

    def _reload_resources(self) -> bool:
        """Read the folders again and swap what changed, in place (C-69, C-70, H-108).

        Whatever cannot be read keeps its last good definition. Returns false if nothing could be read.
        """
        from tieline.config.changes import changed_resources, new_notices

        old = self._resources
        try:
            new = self._read(old)
        except StartError as error:
            _reload_log.error("resources stay as they were: %s", _words(error))
            return False
        for level, text in new_notices(old, new):
            _loader_log.log(LEVELS[level], "%s", text)
        for line in changed_resources(old, new):
            _reload_log.info("%s", line)
        self._use(new)
        return True

    def _reload_configuration(self) -> bool:
        """Read the ``--config`` files; if they do not load, the old ones stay in force, and it returns false."""
        from tieline.config.changes import changed_sections
        from tieline.config.remarks import lost_protections, new_remarks

        parts = self._parts
        old = parts.configuration
        try:
            new = load_configuration(self._settings.config_files, self._environ, again=True)
            if new.metric != old.metric:
                parts.measure(new)
        except StartError as error:
            _reload_log.error("the configuration stays as it was: %s", _words(error))
            return False
        for text in (*new_remarks(old, new), *lost_protections(old, new)):
            _reload_log.warning("%s", text)
        changed = changed_sections(old, new)
        parts.configuration = new
        parts.tracer.enabled = not new.tracing.off
        parts.metadata.features = new.enabled_features()
        if not _OF_THE_APIS.isdisjoint(changed):
            self._swap_apis()
        in_force = [name for name in changed if name in CHANGED_IN_PLACE]
        if in_force:
            _reload_log.info("Configuration changed: %s", ", ".join(in_force))
        later = [name for name in changed if name not in CHANGED_IN_PLACE]
        if later:
            _reload_log.warning("changed, but in force only after the next start: %s", ", ".join(later))
        return True


def _words(error: StartError) -> str:
    """Return what is wrong, without the first words that are for a start."""
    return error.message if isinstance(error, FatalOption) else str(error)


def _wrong_url(url: str) -> str:
    """Say why an endpoint's URL cannot be called; empty if it can."""
    try:
        parse_url(url)
    except BadUrl as error:
        return f"spec.baseUrl: {error}"
    return ""
