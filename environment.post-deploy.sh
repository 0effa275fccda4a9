#!/usr/bin/env bash
# Snakemake runs this in a new environment of environment.yml (--sdm conda), in the folder that it was started in: the
# package itself is not on an index, so it comes from this clone.
set -euo pipefail
if ! grep -qs '^name = "isp"$' pyproject.toml; then
    echo "start snakemake in the clone of isp: its package goes into the environment from there" >&2
    exit 1
fi
python -m pip install --no-deps --no-build-isolation .
