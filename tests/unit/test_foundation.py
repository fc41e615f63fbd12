"""What the repository promises about its own files: locks, settings, docs and news fragments."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
SETTINGS = [
    *LOCKS,
    *sorted((ROOT / "requirements").glob("*.in")),
    *(ROOT / name for name in ("pyproject.toml", "Makefile", "tools/lock.sh", ".ci/run", ".gitignore")),
    *(ROOT / "tests/e2e/sdk" / name for name in ("package.json", "package-lock.json", "pom.xml", "jars.sha256")),
    *(ROOT / "tests/e2e/h2spec" / name for name in ("go.mod", "go.sum")),
]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md")])
DECISIONS = {"model", "errors", "config", "access", "resiliency", "wire"}

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
INDEX_OPTION = re.compile(r"--(?:extra-)?index-url|--find-links\b|--trusted-host|PIP_INDEX_URL")
PINNED = re.compile(r"^([a-z0-9][a-z0-9.-]*)==[^\s;\\]+( ; [^\\]+)? \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+$")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def locked_names(lock: Path) -> set[str]:
    """Return the names of a lock file; fail on an entry that is not pinned and hashed."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    names = set()
    for entry in re.split(r"\n(?=\S)", text.strip()):
        pinned = PINNED.match(entry.strip())
        assert pinned, f"{lock.name}: not pinned with hashes: {entry.splitlines()[0]}"
        names.add(pinned[1])
    return names


def name_in(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: file.name)
def test_no_address_of_a_package_index_is_in_a_settings_file(file: Path) -> None:
    text = file.read_text(encoding="utf-8")

    assert not ADDRESS.search(text)
    assert not INDEX_OPTION.search(text)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda file: file.name)
def test_every_locked_package_has_one_version_and_hashes(lock: Path) -> None:
    assert locked_names(lock)


def test_every_locked_package_for_node_has_a_hash() -> None:
    packages = json.loads((ROOT / "tests/e2e/sdk/package-lock.json").read_text(encoding="utf-8"))["packages"]

    assert packages
    assert all(one["integrity"].startswith("sha512-") for path, one in packages.items() if path)


def test_the_lock_holds_all_that_the_project_needs_to_be_built_and_run() -> None:
    needed = {name_in(dependency) for dependency in project()["project"]["dependencies"]}
    needed |= {name_in(requirement) for requirement in project()["build-system"]["requires"]}
    needed.add("editables")  # what hatchling asks for when it installs editable

    assert needed <= locked_names(ROOT / "requirements/dev.txt")


def test_every_package_that_decides_is_kept_from_the_event_loop() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]
    held = next(c["source_modules"] for c in contracts if c["name"] == "Decisions touch no event loop")
    present = {path.name.removesuffix(".py") for path in (ROOT / "src/tieline").iterdir()}

    assert {f"tieline.{name}" for name in DECISIONS & present} <= set(held)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if ADDRESS.match(link) or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path).resolve() if path else page
        inside = goal.exists() and goal.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in anchors(goal)):
            broken.append(link)

    assert broken == []


def test_news_fragments_are_of_a_known_kind_and_not_empty() -> None:
    kinds = {kind["directory"] for kind in project()["tool"]["towncrier"]["type"]}
    fragments = [path for path in (ROOT / "changes").iterdir() if path.name not in {"README.md", "template.md.j2"}]

    for fragment in fragments:
        assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(sorted(kinds))})\.md", fragment.name), fragment.name
        assert fragment.read_text(encoding="utf-8").strip(), fragment.name
