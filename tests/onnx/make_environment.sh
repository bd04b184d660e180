#!/usr/bin/env bash
# Makes the Python environment of the checks in tests/onnx (requirements.txt) below build/third_party and prints its
# interpreter. Does nothing that is done already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${1:-$root/build/third_party/onnx-checks}
die() { echo "make_environment: $*" >&2; exit 1; }

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  command -v python3 >/dev/null || die "python3 is needed (Debian: python3-venv)"
  mkdir -p "$(dirname "$venv")"
  rm -rf "$venv"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  python3 -m venv "$venv" >"$log" 2>&1 || die "python3 -m venv failed (Debian: python3-venv): $(tail -n 1 "$log")"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$here/requirements.txt" \
    >"$log" 2>&1 || die "pip install failed: $(tail -n 1 "$log")"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi
echo "$venv/bin/python"
