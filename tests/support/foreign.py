"""Programs and libraries of other people that some tests use, installed on request, outside the repository.

``make sdk`` and ``make h2spec`` run ``python -m tests.support.foreign`` with names from ``ALL``. Each is installed from
its lock, with hashes checked, into a folder of the user's cache whose name holds the lock's own hash: a folder that
exists is whole and up to date. Nothing in the project's environment changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

_ROOT: Final = Path(__file__).parents[2]
_SDK: Final = _ROOT / "tests/e2e/sdk"
_GO: Final = _SDK / "go"
_H2SPEC: Final = _ROOT / "tests/e2e/h2spec"
_MAVEN_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


class Foreign(NamedTuple):
    """Something that can be installed.

    Attributes:
        needs: Programs that installing or using it takes.
        what: Its name for people.
        target: Of make.
        locks: Files that say what exactly is installed.
        install: Puts it into an empty folder.
    """

    name: str
    needs: tuple[str, ...]
    what: str
    target: str
    locks: tuple[Path, ...]
    install: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """Where it is, if it is installed."""
        digest = hashlib.sha256(sys.version.encode() if self.name == "python" else b"")
        for lock in self.locks:
            digest.update(lock.read_bytes())
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "tieline-tests" / f"{self.name}-{digest.hexdigest()[:12]}"

    def missing(self) -> str | None:
        """Return the program that is not there, of those it takes."""
        return next((program for program in self.needs if shutil.which(program) is None), None)

    def or_skip(self) -> Path:
        """Return its folder; skip the test that runs if it is not installed."""
        if program := self.missing():
            pytest.skip(f"{program} is not on this machine; it takes that to test with {self.what}")
        folder = self.folder
        if not folder.is_dir():
            pytest.skip(f"run `make {self.target}` first: it installs {self.what} into {folder.parent}")
        return folder

    def fetch(self) -> None:
        """Install it, unless it is there."""
        if self.folder.is_dir():
            print(f"{self.what} is in {self.folder}")
            return
        if program := self.missing():
            print(f"{self.what} is left out: {program} is not on this machine")
            return
        print(f"Installing {self.what} into {self.folder} …")
        new = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        new.mkdir(parents=True)
        try:
            self.install(new)
            new.rename(self.folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _run(*command: str | Path, cwd: Path = _ROOT, **environment: str) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, check=True)


def _install_python(folder: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", folder / "bin/python")
    _run(*pip, "install", "--require-hashes", "--no-deps", "-r", _ROOT / "requirements/sdk.txt")


def _install_node(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_SDK / name, folder)
    _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)


def _install_java(folder: Path) -> None:
    # Maven knows no lock; so a repository of its own, and the hashes of all jars are compared here.
    repository, jars = folder / "repository", folder / "jars"
    maven = ("mvn", "--batch-mode", "--quiet", "--strict-checksums", f"-Dmaven.repo.local={repository}")
    _run(*maven, "-f", _SDK / "pom.xml", _MAVEN_PLUGIN, f"-DoutputDirectory={jars}")
    shutil.rmtree(repository)
    wanted = (_SDK / "jars.sha256").read_text()
    if (found := hashes(jars)) != wanted:
        changed = sorted(set(found.splitlines()) ^ set(wanted.splitlines()))
        raise SystemExit("the jars are not those of jars.sha256:\n" + "\n".join(changed))


def hashes(jars: Path) -> str:
    """Return what ``sha256sum *.jar`` prints."""
    found = sorted(jars.glob("*.jar"))
    return "".join(f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in found)


def _install_go(folder: Path) -> None:
    interop = "google.golang.org/grpc/interop"
    _build(_GO, folder, ".", f"{interop}/client", f"{interop}/server")
    (folder / "sdk-tests").rename(folder / "sdk")


def _build(module: Path, folder: Path, *packages: str) -> None:
    """Build programs of a Go module into a folder."""
    # Modules go into a cache of their own, which is writable and so can be removed again.
    modules = folder / "modules"
    flags = {"GOFLAGS": "-mod=readonly -modcacherw", "GOMODCACHE": str(modules)}
    _run("go", "build", "-o", f"{folder}/", *packages, cwd=module, **flags)
    shutil.rmtree(modules)


def _install_h2spec(folder: Path) -> None:
    _build(_H2SPEC, folder, "github.com/summerwind/h2spec/cmd/h2spec")


PYTHON: Final = Foreign(
    "python", (), "Dapr's SDK for Python", "sdk", (_ROOT / "requirements/sdk.txt",), _install_python
)
NODE: Final = Foreign(
    "node", ("node", "npm"), "Dapr's SDK for Node", "sdk", (_SDK / "package-lock.json",), _install_node
)
JAVA: Final = Foreign(
    "java", ("java", "mvn"), "Dapr's SDK for Java", "sdk", (_SDK / "pom.xml", _SDK / "jars.sha256"), _install_java
)
GO: Final = Foreign(
    "go",
    ("go",),
    "Dapr's SDK for Go and gRPC's interop tests",
    "sdk",
    (_GO / "go.mod", _GO / "go.sum", _GO / "main.go"),
    _install_go,
)
H2SPEC: Final = Foreign(
    "h2spec", ("go",), "h2spec", "h2spec", (_H2SPEC / "go.mod", _H2SPEC / "go.sum"), _install_h2spec
)
ALL: Final = {one.name: one for one in (PYTHON, NODE, JAVA, GO, H2SPEC)}


def main(names: Sequence[str]) -> None:
    """Install those named."""
    for name in names:
        ALL[name].fetch()


if __name__ == "__main__":
    main(sys.argv[1:])
