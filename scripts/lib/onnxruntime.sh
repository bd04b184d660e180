#!/usr/bin/env bash
# Puts ONNX Runtime into build/third_party/onnxruntime: include/onnxruntime/*.h and lib/libonnxruntime.so*. Does nothing
# that is done already (a few milliseconds).
#
#   scripts/lib/onnxruntime.sh [PREFIX]
#
# Headers: Debian's libonnxruntime-dev of trixie. Debian 12 has none and the package is headers alone, so it is downloaded
# with a private package list from this machine's own Debian mirror and unpacked; nothing is installed or changed in the
# system's apt. Library: the onnxruntime wheel from PyPI, which ships libonnxruntime.so. The C interface is the same across
# these versions (the library serves the headers' ORT_API_VERSION).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
prefix=${1:-$root/build/third_party/onnxruntime}
version=1.32.0
suite=trixie
package=libonnxruntime-dev

source "$root/scripts/lib/debian.sh"
die() { echo "onnxruntime: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is needed ($2)"; }

headers=$prefix/include/onnxruntime/onnxruntime_c_api.h
library=$prefix/lib/libonnxruntime.so.$version
if [ -s "$headers" ] && [ -s "$library" ]; then exit 0; fi

mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
work=$(mktemp -d "$prefix/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

fetch_headers() {
  debian_list "$suite" "$work" && debian_download "$work/deb" "$package" ||
    die "$package of $suite is needed (offline? everything native builds without it; elsewhere than on Debian put the headers of ONNX Runtime into $prefix/include/onnxruntime)"
  dpkg -x "$work"/deb/*.deb "$work/unpacked"
  [ -s "$work/unpacked/usr/include/onnxruntime/onnxruntime_c_api.h" ] || die "$package holds no onnxruntime_c_api.h"
  mkdir -p "$prefix/include"
  rm -rf "$prefix/include/onnxruntime"
  mv "$work/unpacked/usr/include/onnxruntime" "$prefix/include/onnxruntime"
}

fetch_library() {
  need python3 "Debian: python3-venv"
  python3 -m venv "$work/venv" >"$work/pip.log" 2>&1 || die "python3 -m venv failed (Debian: python3-venv): $(tail -n 1 "$work/pip.log")"
  "$work/venv/bin/python" -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheel" "onnxruntime==$version" \
    >"$work/pip.log" 2>&1 ||
    die "pip download onnxruntime==$version failed: $(tail -n 1 "$work/pip.log") (offline? everything native runs without it)"
  "$work/venv/bin/python" - "$work" "$version" <<'PYTHON' || die "the wheel of onnxruntime $version holds no libonnxruntime.so.$version"
import glob, os, sys, zipfile
work, version = sys.argv[1:]
wheel, = glob.glob(os.path.join(work, "wheel", "*.whl"))
with zipfile.ZipFile(wheel) as z:
    os.mkdir(os.path.join(work, "lib"))
    for member in z.namelist():
        name = os.path.basename(member)
        # Execution providers other than the built-in one load the "shared" library beside it.
        if name in (f"libonnxruntime.so.{version}", "libonnxruntime_providers_shared.so", "LICENSE", "ThirdPartyNotices.txt"):
            with open(os.path.join(work, "lib", name), "wb") as f:
                f.write(z.read(member))
sys.exit(not os.path.exists(os.path.join(work, "lib", f"libonnxruntime.so.{version}")))
PYTHON
  ln -s "libonnxruntime.so.$version" "$work/lib/libonnxruntime.so.1"
  ln -s libonnxruntime.so.1 "$work/lib/libonnxruntime.so"
  rm -rf "$prefix/lib"
  mv "$work/lib" "$prefix/lib"
}

[ -s "$headers" ] || fetch_headers
[ -s "$library" ] || fetch_library
echo "onnxruntime: $prefix is ready (library $version, headers $(sed -n 's/^#define ORT_API_VERSION *//p' "$headers") of $suite)" >&2
