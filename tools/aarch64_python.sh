#!/bin/sh
# Unpack an aarch64 Python into a folder, for tests/devices/test_aarch64.py: nothing is installed. For Debian with
# qemu-user-static. Usage: tools/aarch64_python.sh FOLDER && HWPRUNE_AARCH64_ROOT=FOLDER pytest -m slow tests/devices
set -eu
mkdir -p "$1" && root=$(cd "$1" && pwd)
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
: >"$work/status"
apt="apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
    -o Dir::State=$work -o Dir::State::Lists=$work/lists -o Dir::State::status=$work/status -o Dir::Cache=$work/cache"
$apt update
series=$($apt --print-uris download python3-minimal | sed -n 's/.*python3-minimal_\(3\.[0-9]*\)\..*/\1/p')
cd "$work/cache/archives"
$apt download libc6 libgcc-s1 libexpat1 zlib1g libffi8 libssl3 \
    "python$series-minimal" "libpython$series-minimal" "libpython$series-stdlib"
for package in *.deb; do dpkg -x "$package" "$root"; done
ln -sf "python$series" "$root/usr/bin/python3"
