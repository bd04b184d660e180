#!/usr/bin/env bash
# Makes the Python environment of the checks in tests/onnx (requirements.txt) below build/third_party and prints its
# interpreter. Does nothing that is done already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${1:-$root/build/third_party/onnx-checks}
ENVIRONMENT_NAME="onnx checks"
. "$root/scripts/lib/environments.sh"

python_environment "$here/requirements.txt" "$venv"
echo "$venv/bin/python"
