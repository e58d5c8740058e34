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

extras=${1:-}
stamp=".venv/.installed${extras//[^a-z]/-}"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # absent, or left half made
  python=$(find_python)
  "$python" -m venv --clear .venv
fi
# shellcheck disable=SC1091
source .venv/bin/activate
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  pip_install="python -m pip install --quiet --disable-pip-version-check"
  # uv takes a tenth of pip's time, but does not read pip's settings, such as those of a company's own index.
  if ! { $pip_install uv && uv pip install --quiet --compile-bytecode --editable ".$extras"; }; then
    echo "uv could not install ${PWD##*/}$extras; trying pip" >&2
    $pip_install --editable ".$extras"
  fi
  touch "$stamp"
fi
