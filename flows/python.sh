#!/bin/sh
# Python for dvc.yaml, so that `dvc repro` needs no activation: of the nearest .venv in this folder or above it
# (`dvc exp run --queue` works in a folder below the project), else of the active environment. Others than the
# project's own may be active; the first one that has what the flows import is taken.
try() {
    command -v "$1" >/dev/null 2>&1 || return
    tried="$tried $1"
    "$1" -c 'import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("torch", "prefect", "mlflow"))))' 2>/dev/null || return
    python=$1
    shift
    exec "$python" "$@"
}
folder=$PWD
while [ -n "$folder" ]; do
    try "$folder/.venv/bin/python" "$@"
    folder=${folder%/*}
done
[ -n "$VIRTUAL_ENV" ] && try "$VIRTUAL_ENV/bin/python" "$@"
[ -n "$CONDA_PREFIX" ] && try "$CONDA_PREFIX/bin/python" "$@"
try python "$@"
try python3 "$@"
echo "error: no Python here has torch, prefect and mlflow (tried:${tried:- none}); run \`make setup\`" >&2
exit 1
