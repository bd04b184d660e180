#!/usr/bin/env bash
# Makes what the proofs of tests/server need below build/third_party: a Python environment (requirements.txt) and the
# official JavaScript client (package-lock.json). Prints the interpreter. Does nothing that is done already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/build/third_party/server-proofs}
ENVIRONMENT_NAME="server proofs"
. "$root/scripts/lib/environments.sh"

python_environment "$here/requirements.txt" "$folder/venv"
npm_environment "$here" "$folder"
echo "$folder/venv/bin/python"
