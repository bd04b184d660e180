# Sourced by scripts/build, scripts/demo and scripts/test. Installs what is missing (Debian 12 packages), configures and
# builds. A run that finds everything in place costs about a second.
set -euo pipefail

QVL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$QVL_ROOT"

# What the product needs to build; versions are those of Debian 12.
QVL_BUILD_PACKAGES=(g++ cmake ninja-build pkg-config nlohmann-json3-dev libfmt-dev libcli11-dev
  libsimdjson-dev libjpeg62-turbo-dev libpng-dev libwebp-dev libgif-dev libedit-dev libssl-dev libxxhash-dev
  libonnx-dev libprotobuf-dev
  libboost1.81-dev libcurl4-openssl-dev)
# Pictures with boxes drawn on them; without a font labels become numbers.
QVL_BUILD_PACKAGES+=(libpango1.0-dev libcairo2-dev libfontconfig-dev fonts-dejavu-core)
# What only the tests need. npm and python fetch the real vocabulary and its reference tokenizer.
QVL_TEST_PACKAGES=(libgtest-dev python3 python3-venv openssl ca-certificates)
# What only the tests of the NEON kernels need, unless the machine is an ARM one: a cross compiler and an emulator.
QVL_NEON_PACKAGES=(g++-aarch64-linux-gnu qemu-user googletest)
# What only the tests of the AVX-512 code need, where lacks_avx512: libraries and tools of the emulated PC that
# scripts/lib/bochs.sh fetches.
QVL_AVX512_PACKAGES=(libgtk-3-0 libltdl7 libncurses6 libreadline8 libsamplerate0 busybox-static isolinux syslinux-common xorriso)
# What only the tests of the page need.
QVL_PAGE_PACKAGES=(chromium-headless-shell)
# Compiles the grammar engine (scripts/lib/llguidance.sh), where no recent cargo is on the PATH.
QVL_RUST_PACKAGES=(rustc-web cargo-web)

say() { printf '[qvl] %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    sudo "$@"
  else
    say "need root to run: $*  (become root or install sudo)"
    return 1
  fi
}

# install_packages PACKAGE...: apt-installs those that are not there yet.
install_packages() {
  local missing=() package
  for package in "$@"; do
    if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
      missing+=("$package")
    fi
  done
  [ ${#missing[@]} = 0 ] && return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    say "these packages are missing and apt-get is not here to install them: ${missing[*]}"
    return 1
  fi
  say "installing: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# passed_tests FILE...: how many tests passed, by what test programs wrote at their ends.
passed_tests() {
  sed -n 's/^\[  PASSED  \] \([0-9]*\) tests\{0,1\}\.$/\1/p' "$@" | awk '{sum += $1} END {print sum + 0}'
}

# lacks_avx512: whether this is an x86-64 machine whose processor cannot run all of the AVX-512 code, with VNNI and BF16.
lacks_avx512() {
  local flag flags
  [ "$(uname -m)" = x86_64 ] || return 1
  flags=" $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1) "
  for flag in avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16; do
    [[ $flags == *" $flag "* ]] || return 0
  done
  return 1
}

# with_onnxruntime: fetches ONNX Runtime; without a network the product is built without its ONNX engine.
with_onnxruntime() {
  scripts/lib/onnxruntime.sh || say "going on without ONNX Runtime: --vision onnx and --text onnx will not be there"
}

# with_page_libraries: fetches what the page of `qvl serve` renders Markdown with; without it answers are plain text there.
with_page_libraries() {
  { command -v npm >/dev/null 2>&1 || install_packages npm; } && scripts/lib/page.sh ||
    say "going on without the page's Markdown libraries: it will show answers as plain text"
}

# need_rust: a compiler for the grammar engine, where it must be built and none is there.
need_rust() {
  if scripts/lib/llguidance.sh --lacks-rust; then install_packages "${QVL_RUST_PACKAGES[@]}"; fi
}

# with_llguidance: builds the grammar engine; without a network the product is built without constrained output.
with_llguidance() {
  { need_rust && scripts/lib/llguidance.sh; } || say "going on without llguidance: JSON schemas and tool calls will not be enforced"
}

# configure PRESET [CMAKE OPTION...]: build/PRESET, when it is not configured like this already.
configure() {
  local preset=$1
  shift
  # Built whole as a rule; who changes and rebuilds works with the presets themselves.
  [ "$preset" != release ] || set -- "$@" -DQVL_UNITY=ON
  [ -d build/third_party/onnxruntime/include/onnxruntime ] &&
    set -- "$@" "-DQVL_ONNXRUNTIME_INCLUDE=$QVL_ROOT/build/third_party/onnxruntime/include/onnxruntime"
  [ -f build/third_party/llguidance/lib/libqvl_llguidance.a ] && set -- "$@" "-DQVL_LLGUIDANCE=$QVL_ROOT/build/third_party/llguidance"
  local stamp="build/$preset/.configured-with" wanted="$*"
  if [ ! -f "build/$preset/build.ninja" ] || [ "$(cat "$stamp" 2>/dev/null || echo none)" != "$wanted" ]; then
    say "configuring build/$preset"
    cmake --preset "$preset" "$@" >&2
    printf '%s\n' "$wanted" >"$stamp"
  fi
}

# build PRESET [CMAKE OPTION...]: configures when needed and builds into build/PRESET.
build() {
  configure "$@"
  cmake --build "build/$1" -- --quiet >&2 || { say "build failed: run 'cmake --build build/$1' to see it again"; return 1; }
}
