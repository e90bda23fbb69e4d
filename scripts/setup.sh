#!/bin/sh
# Installs the Debian packages that building, testing and demonstrating need.
#
# Safe to run again: does nothing, and needs no privilege and no network, when all are there.
# Runs apt through sudo where it is not root.
set -eu

packages="
    acpica-tools
    ca-certificates
    curl
    debian-archive-keyring
    e2fsprogs
    gcc
    iproute2
    libc6-dev
    make
    mmdebstrap
    openssh-client
    procps
    qemu-utils
    util-linux
    xz-utils
    zstd
"
# More that a caller needs.
packages="$packages $*"
# mmdebstrap and mkfs.ext4 make files of root without being root through these.
[ "$(id -u)" -eq 0 ] || packages="$packages fakeroot uidmap"

fail() {
    echo "setup: $*" >&2
    exit 1
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    fail "this script knows Debian and its relatives only; install by hand:" $packages

missing=
for package in $packages; do
    installed "$package" || missing="$missing $package"
done

if [ -n "$missing" ]; then
    root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "run this as root, to install:$missing"
        root=sudo
    fi
    echo "setup: installing$missing"
    $root env DEBIAN_FRONTEND=noninteractive apt-get -q update ||
        echo "setup: some package lists could not be updated, going on with those at hand" >&2
    # shellcheck disable=SC2086 # one word for each package
    $root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $missing ||
        fail "apt-get could not install:$missing"
fi

command -v cargo >/dev/null || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] ||
    fail "cargo is missing: install Rust 1.95 or newer with rustup"
