#!/bin/sh
# Python for dvc.yaml: of the active environment, else of the nearest .venv in this folder or above it
# (`dvc exp run --queue` works in a folder below the project), so that `dvc repro` needs no activation.
if [ -n "$VIRTUAL_ENV" ]; then
    exec "$VIRTUAL_ENV/bin/python" "$@"
fi
folder=$PWD
while [ "$folder" != "/" ]; do
    [ -x "$folder/.venv/bin/python" ] && exec "$folder/.venv/bin/python" "$@"
    folder=$(dirname "$folder")
done
exec python "$@"
