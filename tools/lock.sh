#!/usr/bin/env bash
# Writes requirements/*.txt anew: exact versions, sha256 of every wheel and sdist, no index address.
#
# Runs uv from a throw-away environment, so that the project's own stays as the lock says.
# tools/lock.sh            keep locked versions where they still fit
# tools/lock.sh --upgrade  take the newest versions
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
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

if grep -nE '[a-z]+://' requirements/*.txt; then
    echo "lock.sh: an address got into a lock file (see above); take it out" >&2
    exit 1
fi
