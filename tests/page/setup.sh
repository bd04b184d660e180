#!/usr/bin/env bash
# Puts what the tests of the page need beside Chromium (playwright-core, axe-core; package-lock.json pins them) into
# build/third_party/page-tests. Does nothing that is done already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/build/third_party/page-tests}
die() { echo "page tests: $*" >&2; exit 1; }

if cmp -s "$here/package-lock.json" "$folder/package-lock.json" && [ -d "$folder/node_modules" ]; then exit 0; fi
command -v npm >/dev/null || die "npm is needed (Debian: npm)"
mkdir -p "$folder"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/package-lock.json" "$work/"
(cd "$work" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >npm.log 2>&1) || die "npm ci failed: $(tail -n 1 "$work/npm.log")"
rm -rf "$folder"
mv "$work" "$folder"
chmod 755 "$folder"
echo "page tests: $folder is ready" >&2
