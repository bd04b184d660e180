#!/usr/bin/env bash
# Makes what the proofs of tests/server need below build/third_party: a Python environment (requirements.txt) and the
# official JavaScript client (package-lock.json). Prints the interpreter. Does nothing that is done already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/build/third_party/server-proofs}
die() { echo "make_environment: $*" >&2; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! cmp -s "$here/requirements.txt" "$folder/venv/requirements.txt"; then
  command -v python3 >/dev/null || die "python3 is needed (Debian: python3-venv)"
  mkdir -p "$folder"
  rm -rf "$folder/venv"
  python3 -m venv "$folder/venv" >"$log" 2>&1 || die "python3 -m venv failed (Debian: python3-venv): $(tail -n 1 "$log")"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$here/requirements.txt" \
    >"$log" 2>&1 || die "pip install failed: $(tail -n 1 "$log")"
  cp "$here/requirements.txt" "$folder/venv/requirements.txt"
fi
if ! cmp -s "$here/package-lock.json" "$folder/package-lock.json"; then
  command -v npm >/dev/null || die "npm is needed (Debian: npm)"
  rm -rf "$folder/node_modules" "$folder/package-lock.json"
  cp "$here/package.json" "$folder/"
  cp "$here/package-lock.json" "$folder/package-lock.json.new"
  mv "$folder/package-lock.json.new" "$folder/package-lock.json"
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >"$log" 2>&1 ||
    { rm -f "$folder/package-lock.json"; die "npm ci failed: $(tail -n 1 "$log")"; }
fi
echo "$folder/venv/bin/python"
