# Makes or reuses .venv in the repository root and installs mean-jax with the extras named in $1 (or none).
# Sourced by the scripts beside it; leaves the environment active and the working directory at the root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python >= 3.11 found; install one or name it with PYTHON=/path/to/python" >&2
  exit 2
}

# uv takes a fraction of pip's time. It is told pip's settings, which it does not read by itself; where it fails, pip
# goes on.
install_all() {
  local options=(--python .venv/bin/python --index-strategy unsafe-best-match --compile-bytecode) name values value
  while read -r name values; do
    for value in $values; do options+=("--$name" "$value"); done
  done < <(python -m pip config list | sed -nE "s/^[^=]*\.(index-url|extra-index-url|find-links|constraint)='(.*)'$/\1 \2/p")
  if ! python -m pip config list | grep -q '[.]no-index='; then
    if python -m pip install --quiet --disable-pip-version-check uv &&
      UV_SYSTEM_PYTHON=0 python -m uv pip install --quiet "${options[@]}" --editable "$1"; then
      return
    fi
    echo "uv could not install $1; pip tries next" >&2
  fi
  python -m pip install --quiet --disable-pip-version-check --editable "$1"
}

extras=${1:-}
stamp=".venv/.installed${extras//[^a-z]/-}"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # absent, or left half made
  python=$(find_python)
  "$python" -m venv --clear .venv
fi
# shellcheck disable=SC1091
source .venv/bin/activate
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  install_all ".$extras"
  touch "$stamp"
fi
