#!/usr/bin/env bash
# Writes requirements/*.txt anew: exact versions, sha256 of every wheel and sdist, no index address. tools/lock.sh --sdk
# does the same for the SDKs of other languages and h2spec, below tests/e2e; it takes npm, mvn and go.
#
# Runs uv from a throw-away environment, so that the project's own stays as the lock says.
# tools/lock.sh            keep locked versions where they still fit
# tools/lock.sh --upgrade  take the newest versions
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

no_addresses() {
    if grep -nE '[a-z]+://' "$@"; then
        echo "lock.sh: an address got into a lock file (see above); take it out" >&2
        exit 1
    fi
}

if [ "${1:-}" = --sdk ]; then
    # Versions are chosen in package.json, pom.xml and go.mod; this writes what follows from them.
    cd tests/e2e/sdk
    cp package.json package-lock.json "$work"
    npm install --prefix "$work" --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit \
        --no-fund --loglevel=error
    "${PYTHON:-python3}" - "$work/package-lock.json" > package-lock.json <<'EOF'
import json, sys
lock = json.load(open(sys.argv[1]))
kept = ("name", "version", "integrity", "dependencies", "optional", "optionalDependencies", "peer", "peerDependencies",
        "peerDependenciesMeta", "dev", "hasInstallScript", "bin", "os", "cpu")
lock["packages"] = {path: {key: one[key] for key in kept if key in one} for path, one in lock["packages"].items()}
print(json.dumps(lock, indent=2))
EOF
    mvn --batch-mode --quiet -f pom.xml -Dmaven.repo.local="$work/maven" -DoutputDirectory="$work/jars" \
        org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies
    (cd "$work/jars" && LC_ALL=C sha256sum *.jar) > jars.sha256
    (cd ../h2spec && go mod tidy)
    (cd go && go mod tidy)
    no_addresses package-lock.json jars.sha256 go/go.* ../h2spec/go.*
    exit
fi

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'uv==0.13.9'

# Universal: one file for every platform and every Python from 3.11 on, by environment markers.
compile() {
    local out=$1
    shift
    "$work/venv/bin/uv" pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
        --output-file "$out" "$@" >/dev/null
}
compile requirements/dev.txt pyproject.toml requirements/dev.in "$@"
compile requirements/bench.txt requirements/bench.in --constraint requirements/dev.txt "$@"
compile requirements/sdk.txt requirements/sdk.in "$@"
no_addresses requirements/*.txt
