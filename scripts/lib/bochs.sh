#!/usr/bin/env bash
# Puts the PC emulator Bochs and a Linux kernel for it into build/third_party/bochs, for scripts/test-avx512. Does nothing
# that is done already (a few milliseconds).
#
#   scripts/lib/bochs.sh [PREFIX]
#
# Both are Debian's, of trixie: Bochs 3.0 is the first that knows every AVX-512 instruction used here (Debian 12's 2.7 lacks
# BF16), and its kernel is packed with zstd, which an emulator unpacks in seconds. Bochs comes with trixie's C library, in
# its own folder; the other libraries it needs are the machine's (QVL_AVX512_PACKAGES in scripts/lib/setup.sh).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
prefix=${1:-$root/build/third_party/bochs}
suite=trixie
packages=(bochs bochs-term bochsbios vgabios libc6)

source "$root/scripts/lib/debian.sh"
die() { echo "bochs: $*" >&2; exit 1; }

if [ -f "$prefix/version" ]; then exit 0; fi
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
work=$(mktemp -d "$prefix/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

debian_list "$suite" "$work" || die "Bochs was not fetched (offline?)"
kernel=$(debian_depends linux-image-cloud-amd64)
[ -n "$kernel" ] || die "linux-image-cloud-amd64 of $suite names no kernel"
debian_download "$work/deb" "${packages[@]}" "$kernel" || die "Bochs was not fetched (offline?)"

mkdir "$work/tree"
for package in "${packages[@]}"; do dpkg -x "$work/deb/$package"_*.deb "$work/tree"; done
# Of the kernel the image alone: it has what the tests need built in.
dpkg --fsys-tarfile "$work/deb/$kernel"_*.deb | tar -x -C "$work/tree" --wildcards './boot/vmlinuz-*'
libraries=$work/tree/usr/lib/x86_64-linux-gnu
mkdir "$work/bochs"
mv "$work/tree/usr/bin/bochs-bin" "$work/bochs/bochs"
mv "$libraries/bochs/plugins" "$work/bochs/plugins"
mkdir "$work/bochs/lib"
mv "$libraries"/{ld-linux-x86-64.so.2,libc.so.6,libm.so.6,libdl.so.2,libpthread.so.0,librt.so.1} "$work/bochs/lib/"
mv "$work/tree/usr/share/bochs/BIOS-bochs-latest" "$work/bochs/bios"
cp -L "$work/tree/usr/share/vgabios/vgabios.bin" "$work/bochs/vgabios"
mv "$work"/tree/boot/vmlinuz-* "$work/bochs/vmlinuz"
cp -r "$work/tree/usr/share/doc/bochs/copyright" "$work/bochs/copyright"
version="$(dpkg-deb -f "$work"/deb/bochs_*.deb Version), $kernel"

rm -rf "$prefix"/{bochs,plugins,lib,bios,vgabios,vmlinuz,copyright}
mv "$work"/bochs/* "$prefix/"
echo "$version" >"$prefix/version"
echo "bochs: $prefix is ready ($version)" >&2
