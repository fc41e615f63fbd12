#!/usr/bin/env bash
# Generates src/tieline/_generated/**/*_pb2.py{,i} from the .proto files beside them.
#
# Runs protoc from a throw-away environment. The modules are then bent in two ways: they import each other below
# tieline._generated, and register in a pool of Tieline's own, so that an app in the same process may use Dapr's SDK.
set -euo pipefail
cd "$(dirname "$0")/../src/tieline/_generated"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'grpcio-tools==1.85.1'

find . -name '*_pb2.py*' -delete
mapfile -t protos < <(find . -name '*.proto' | sed 's|^\./||' | LC_ALL=C sort)
"$work/venv/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. "${protos[@]}"
for proto in "${protos[@]}"; do
    base=${proto%.proto}_pb2
    sed -i -E \
        -e 's/^from (dapr|google\.rpc|grpc)\b/from tieline._generated.\1/' \
        "$base.py" "$base.pyi"
    sed -i -E \
        -e 's/_descriptor_pool\.Default\(\)/_descriptor_pool.POOL/' \
        -e 's/^from google\.protobuf import descriptor_pool as _descriptor_pool$/from tieline._generated import pool as _descriptor_pool/' \
        -e 's/^from google\.protobuf import (any|empty|timestamp|duration)_pb2 as .*$//' \
        "$base.py"
done
