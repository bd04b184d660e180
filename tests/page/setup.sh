#!/usr/bin/env bash
# Puts what the tests of the page need beside Chromium (playwright-core, axe-core; package-lock.json pins them) into
# build/third_party/page-tests. Does nothing that is done already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/build/third_party/page-tests}
ENVIRONMENT_NAME="page tests"
. "$root/scripts/lib/environments.sh"

npm_environment "$here" "$folder"
