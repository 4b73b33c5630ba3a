#!/bin/sh
# `make gpu` without make: from a copy of the tree, with the python3 that has torch. It writes into $OUT, or
# reports/gpu/<card>, and a temporary folder alone.
#   OUT=/some/folder WHEELS=wheels sh tests/gpu/run.sh [--gpu-long] [-k counter]
set -eu
cd "$(dirname "$0")/../.."
python="${GPU_PYTHON:-python3}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT INT TERM
path="$PWD"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$place/site" "$WHEELS"/*.whl
  path="$path:$place/site"
fi
[ -z "${OUT:-}" ] || set -- --gpu-out "$OUT" "$@"
# No .pyc and no cache beside the sources: the tree may be somebody's, or read-only.
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" \
  "$python" -m pytest -p no:xdist -p no:cacheprovider --basetemp "$place/pytest" -m gpu -rs -s --durations=0 \
  --durations-min=1 tests/gpu "$@"
