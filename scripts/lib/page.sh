#!/usr/bin/env bash
# Puts the two libraries of the page that `qvl serve` shows into build/third_party/page: marked.js (Markdown) and purify.js
# (DOMPurify, which lets only harmless elements through), with their licenses. Does nothing that is done already.
#
#   scripts/lib/page.sh [FOLDER]
#
# They are built into the program; without them its page shows answers as plain text.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/build/third_party/page}
# Name, version, SHA-512 of the registry's archive, the module in it, its name here.
libraries=(
  "marked 18.2.1 ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/cI6p8z57FxliACboTruMA== lib/marked.esm.js marked.js"
  "dompurify 3.5.0 LYC0ZkE8P1V42JsRYTwMdme/2ET8SpOc5AA2eOFjP/IadvRd2fwiT4TVz5vkfy0XUx12aS2UaRkTnfVPNOv9vw== dist/purify.es.mjs purify.js"
)

die() { echo "page: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is needed ($2)"; }

stamp="${libraries[*]}"
if [ "$(cat "$folder/.stamp" 2>/dev/null || true)" = "$stamp" ]; then exit 0; fi
need npm "Debian: npm"
need openssl "Debian: openssl"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

for library in "${libraries[@]}"; do
  read -r name version integrity module target <<<"$library"
  mkdir "$work/$name"
  # npm pack fetches the one archive: no dependencies, no scripts of the package run.
  (cd "$work/$name" && npm pack --loglevel=error --ignore-scripts "$name@$version" >pack.log 2>&1) ||
    die "npm pack $name@$version failed: $(tail -n 1 "$work/$name/pack.log") (offline? the page then shows answers as plain text)"
  archive=$(ls "$work/$name"/*.tgz)
  got=$(openssl dgst -sha512 -binary "$archive" | base64 -w 0)
  [ "$got" = "$integrity" ] || die "$name@$version: expected sha512 $integrity, got $got"
  tar -xzf "$archive" -C "$work/$name"
  # The map is not served; a browser's developer tools would ask for it.
  sed '/^\/\/# sourceMappingURL=/d' "$work/$name/package/$module" >"$work/$target"
  cat "$work/$name/package/LICENSE"* >"$work/$target.LICENSE" || die "$name@$version holds no license"
done
rm -f "$folder/.stamp"
for library in "${libraries[@]}"; do
  read -r _ _ _ _ target <<<"$library"
  mv "$work/$target" "$work/$target.LICENSE" "$folder/"
done
echo "$stamp" >"$folder/.stamp"
echo "page: $folder is ready" >&2
