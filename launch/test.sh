#!/usr/bin/env bash
# Lint, types and the whole test suite: bash launch/test.sh [pytest arguments]
# Needs Python >= 3.11 with venv and pip; makes or reuses .venv and installs what it needs.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[dev]"
ruff check .
ruff format --check .
mypy mean_jax launch/*.py
python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
