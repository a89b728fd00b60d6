#!/usr/bin/env bash
# Correctness and speed on an NVIDIA GPU in one table, under 9 minutes:
#
#     benchmarks/gpu/run.sh [--sections ceilings attention ...] [--minutes 9] [--out FOLDER]
#
# PYTHON names an interpreter with a CUDA build of torch (default: .venv/bin/python, else python3). What of our own
# dependencies it lacks is installed into build/gpu/site, from the wheels in .whl where that folder is, else with pip;
# README.md beside this file says how to fill it for a machine without a network.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "$python has no torch that can use a GPU here: name another by PYTHON" >&2
    exit 78
}

site=build/gpu/site
export PYTHONPATH="$PWD/$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -d .whl ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl
fi
"$python" -c 'import setuptools; setuptools.setup()' -q build_ext --inplace

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
exec "$python" -m benchmarks.gpu "$@"
