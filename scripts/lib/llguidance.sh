#!/usr/bin/env bash
# Puts the grammar engine llguidance into build/third_party/llguidance: include/llguidance.h and lib/libqvl_llguidance.a,
# with the licences of what went into it. Does nothing that is done already (a few milliseconds).
#
#   scripts/lib/llguidance.sh [PREFIX]
#   scripts/lib/llguidance.sh --lacks-rust [PREFIX]    exit code 0: there is something to build, and no compiler for it
#
# third_party/llguidance pins the crate and everything it needs (Cargo.lock); cargo fetches it from its registry and builds
# it: about two minutes of processor time. Any cargo and rustc of 1.87 or newer on the PATH will do; Debian 12 has one in
# rustc-web and cargo-web (scripts/build, scripts/demo and scripts/test install them where there is none).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
lacks_rust=0
if [ "${1:-}" = --lacks-rust ]; then
  lacks_rust=1
  shift
fi
prefix=${1:-$root/build/third_party/llguidance}
source=$root/third_party/llguidance
oldest=1.87

die() { echo "llguidance: $*" >&2; exit 1; }

library=$prefix/lib/libqvl_llguidance.a
stamp=$(cat "$source/Cargo.lock" "$source/Cargo.toml" "$source/lib.rs" | sha256sum | cut -c1-16)
if [ -s "$library" ] && [ -s "$prefix/include/llguidance.h" ] && [ "$(cat "$prefix/stamp" 2>/dev/null)" = "$stamp" ]; then
  exit "$lacks_rust"
fi

# The first compiler that is new enough, on the PATH or Debian's.
version=none
for folder in "$(dirname "$(command -v rustc || echo /usr/bin/rustc)")" /usr/bin; do
  [ -x "$folder/rustc" ] && [ -x "$folder/cargo" ] || continue
  version=$("$folder/rustc" --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p' || true)
  if [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$oldest" "$version" | sort -V | head -n 1)" = "$oldest" ]; then
    rust=$folder
    break
  fi
done
[ "$lacks_rust" = 0 ] || { [ -z "${rust:-}" ]; exit; }
[ -n "${rust:-}" ] ||
  die "rustc and cargo of $oldest or newer are needed, found $version (Debian 12: apt-get install rustc-web cargo-web)"
export PATH=$rust:$PATH

mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
work=$(mktemp -d "$prefix/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
started=$SECONDS
# The environment of the caller must not change what is built.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_TARGET_DIR

(cd "$source" && cargo fetch --locked >"$work/cargo.log" 2>&1) ||
  die "the crates of third_party/llguidance could not be fetched: $(tail -n 1 "$work/cargo.log") (offline? all but constrained output builds without them)"
(cd "$source" && cargo build --release --locked --offline --target-dir "$work/target" >"$work/cargo.log" 2>&1) ||
  { cat "$work/cargo.log" >&2; die "cargo build failed"; }

# The header is the crate's own; its build puts it beside the library.
[ -s "$work/target/release/llguidance.h" ] || die "the build of llguidance left no llguidance.h"
mkdir -p "$work/include" "$work/lib" "$work/licenses"
cp "$work/target/release/llguidance.h" "$work/include/"
cp "$work/target/release/libqvl_llguidance.a" "$work/lib/"
# One folder a crate. cargo metadata is JSON on one line; manifest_path is the only thing needed from it.
while read -r manifest; do
  folder=$(dirname "$manifest")
  for file in "$folder"/LICENSE* "$folder"/LICENCE* "$folder"/COPYING* "$folder"/NOTICE*; do
    [ -f "$file" ] || continue
    mkdir -p "$work/licenses/$(basename "$folder")"
    cp "$file" "$work/licenses/$(basename "$folder")/"
  done
done < <(cd "$source" && cargo metadata --format-version 1 --locked --offline --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" |
  grep -o '"manifest_path":"[^"]*"' | sed 's/^"manifest_path":"//; s/"$//' | grep -v "^$source/")

rm -rf "$prefix/include" "$prefix/lib" "$prefix/licenses" "$prefix/stamp"
mv "$work/include" "$work/lib" "$work/licenses" "$prefix/"
echo "$stamp" >"$prefix/stamp"
crate=$(sed -n '/^name = "llguidance"$/{n;s/^version = "\(.*\)"$/\1/p}' "$source/Cargo.lock")
echo "llguidance: $prefix is ready (llguidance $crate, built by rustc $version in $((SECONDS - started)) s)" >&2
