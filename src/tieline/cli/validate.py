"""``tieline validate``: checks resource files and Configurations, without starting anything."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from tieline.config.checks.files import Checked, Checker
from tieline.config.checks.findings import Finding, Severity
from tieline.config.folders import MAX_FILE_BYTES, MAX_FILES, Unreadable, list_folder, read_bounded
from tieline.telemetry.label_rules import compile_rules
from tieline.telemetry.logs import is_colourful
from tieline.telemetry.path_patterns import BadPattern, PathPatterns

STDIN: Final = "-"
STDIN_NAME: Final = "<stdin>"
FAILED: Final = 1
_COLOURS: Final = {Severity.ERROR: "31;1", Severity.WARNING: "33", Severity.NOTE: "2"}
_INDENT: Final = "    "


@click.command("validate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help="Form; text if not given.")
def command(paths: tuple[str, ...], strict: bool, output: str) -> int:
    """Check resource files and Configurations, without starting anything.

    Each PATH is a file, a folder as --resources-path takes it, or - for standard input. Everything is told at
    once: what would be refused, what would do nothing without a word (a misspelt key, a kind in another case, a
    document hidden behind an empty one), and what two files both claim. Exit code 1 if there are errors.

    \b
    Example:
      tieline validate resources/ config.yaml
    """
    checker, files = check_paths(paths, os.environ)
    findings = checker.findings()
    errors = _count(findings, Severity.ERROR)
    warnings = _count(findings, Severity.WARNING)
    if output == "json":
        click.echo(_as_json(findings, files.count, checker.documents))
    else:
        _print(findings)
        counted = f"{_number(checker.documents, 'document')} in {_number(files.count, 'file')}"
        told = ", ".join(
            filter(None, [_number(errors, "error") if errors else "", _number(warnings, "warning") if warnings else ""])
        )
        click.echo(
            f"{counted}: {told or ('nothing wrong' if checker.documents else 'nothing to check')}.", err=bool(errors)
        )
    return FAILED if errors or (strict and warnings) else 0


def check_paths(paths: Sequence[str], environ: Mapping[str, str]) -> tuple[Checker, Paths]:
    """Check files and folders, each as the command's ``PATH``."""
    checker = Checker(environ)
    files = Paths(checker)
    for path in paths:
        files.check(path)
    for checked in checker.configurations:
        _check_metrics(checked)
        _check_names(checked)
    return checker, files


def _check_metrics(checked: Checked) -> None:
    """Look for patterns and expressions that metrics could not use (C-10)."""
    metric, places = checked.configuration.metric, checked.configuration.places

    def line(key: str) -> int:
        found = [places[name].line for name in (f"spec.metrics.{key}", f"spec.metric.{key}") if name in places]
        return found[0] if found else 0

    if metric.path_matching:
        try:
            PathPatterns(metric.path_matching)
        except BadPattern as error:
            checked.found.error(line("http.pathMatching"), f"pathMatching: {error}")
    _, problems = compile_rules((rule.name, rule.labels) for rule in metric.rules)
    for problem in problems:
        checked.found.error(line("rules"), f"metrics: {problem}")


def _check_names(checked: Checked) -> None:
    """Look for name resolution that no start could make (N-1, N-2)."""
    spec = checked.configuration.name_resolution
    if spec is None or not spec.component:
        return
    from tieline.names.builtin import RESOLVERS
    from tieline.names.registry import local_registry
    from tieline.names.resolver import BadResolver, InstanceFacts, Resolver, create
    from tieline.net.tasks import spawn

    facts = InstanceFacts(
        app_id="app",
        namespace="default",
        host_address="127.0.0.1",
        http_port=1,
        grpc_port=1,
        internal_port=1,
        app_port=1,
        pid=1,
        started=0.0,
    )

    def registry(*_: object) -> Resolver:
        return local_registry(facts, environ={}, spawn=spawn)

    try:
        create(spec, facts, spawn, {**RESOLVERS, "registry": registry})
    except BadResolver as error:
        checked.found.error(spec.place.line, f"nameResolution: {error.cause}", error.remedy)


class Paths:
    """Gives files to a checker, each once: given twice, a resource would be its own double.

    Attributes:
        count: How many files there were.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._done: set[str] = set()
        self.count = 0

    def check(self, path: str) -> None:
        """Check a file, the files of a folder, or standard input."""
        if path == STDIN:
            self._check_input()
        elif Path(path).is_dir():
            self._check_folder(path)
        else:
            self._check_file(path, alone=True)

    def _check_input(self) -> None:
        self.count += 1
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            self._checker.file(STDIN_NAME).error(0, f"it is longer than {MAX_FILE_BYTES} bytes")
        else:
            self._checker.check(data, STDIN_NAME, alone=True)

    def _check_folder(self, folder: str) -> None:
        try:
            listing = list_folder(folder)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            self._checker.file(folder).error(0, f"cannot be read: {reason}")
            return
        for name in listing.others:
            found = self._checker.file(str(Path(folder, name)))
            found.warn(0, "not loaded, since its name does not end in .yaml or .yml")
        if listing.left_out:
            text = f"more than {MAX_FILES} files; the last {listing.left_out} are not read"
            self._checker.file(folder).warn(0, text)
        for name in listing.files:
            self._check_file(str(Path(folder, name)), alone=False)

    def _check_file(self, path: str, *, alone: bool) -> None:
        real = os.path.realpath(path)
        if real in self._done:
            return
        self._done.add(real)
        self.count += 1
        try:
            data = read_bounded(path)
        except Unreadable as error:
            self._checker.file(path).error(0, f"cannot be read: {error}")
        else:
            self._checker.check(data, path, alone=alone)


def _print(findings: Sequence[Finding]) -> None:
    """Write each finding as compilers do, so that editors find the place; hints go below, on a terminal wrapped."""
    colourful = is_colourful(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for file, line, severity, message, hint in findings:
        place = f"{_clean(file)}:{line}: " if line else f"{_clean(file)}: "
        word = f"\x1b[{_COLOURS[severity]}m{severity}\x1b[0m" if colourful else severity
        lines = _wrapped(f"{place}{severity}: {message}", width)
        lines[0] = lines[0].replace(f"{place}{severity}:", f"{place}{word}:", 1)
        if hint:
            lines += [_INDENT + one for one in _wrapped(f"hint: {hint}", width and width - len(_INDENT))]
        click.echo("\n".join(lines))


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(
        text, max(width, 40), subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False
    ) or [text]


def _clean(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _as_json(findings: Sequence[Finding], files: int, documents: int) -> str:
    found = [
        {"file": file, "line": line or None, "severity": str(severity), "message": message, "hint": hint or None}
        for file, line, severity, message, hint in findings
    ]
    counts = {f"{severity}s": _count(findings, severity) for severity in Severity}
    return json.dumps({"files": files, "documents": documents, **counts, "findings": found}, indent=2)


def _count(findings: Sequence[Finding], severity: Severity) -> int:
    return sum(finding.severity is severity for finding in findings)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
