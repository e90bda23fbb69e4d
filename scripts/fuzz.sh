#!/bin/sh
# Runs the fuzz targets: fuzz.sh SECONDS [TARGET...], each target so long, all without names.
#
# The instrumentation is that of LLVM itself, so the stable compiler does; libFuzzer is C++.
# FUZZ_SANITIZER=address adds checks of each memory access and needs a nightly compiler.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

[ $# -ge 1 ] || {
    echo "usage: $0 SECONDS [TARGET...]" >&2
    exit 2
}
seconds=$1
shift
[ $# -gt 0 ] || set -- $(ls fuzz/targets | sed 's/\.rs$//')

command -v c++ >/dev/null || ./scripts/setup.sh g++

triple=x86_64-unknown-linux-gnu
target=${CARGO_TARGET_DIR:-target}/fuzz
flags=-Cpasses=sancov-module
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$flag"
done
toolchain=
if [ -n "${FUZZ_SANITIZER:-}" ]; then
    cargo +nightly --version >/dev/null 2>&1 || {
        echo "$0: FUZZ_SANITIZER needs a nightly compiler: rustup toolchain install nightly" >&2
        exit 2
    }
    toolchain=+nightly
    target=$target-$FUZZ_SANITIZER
    flags="$flags -Zsanitizer=$FUZZ_SANITIZER"
fi
# With --target the flags are not for build scripts.
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$flags --cfg fuzzing" CARGO_TARGET_DIR="$target" \
    cargo $toolchain build --manifest-path fuzz/Cargo.toml --release --target "$triple"
programs=$target/$triple/release
ln -sfn "$(realpath "$programs")" fuzz/run

mkdir -p fuzz/artifacts
corpus=$target/corpus
rm -rf "$target/seeds"
FUZZ_SEEDS=$target/seeds "$programs/seeds" -runs=1 -verbosity=0
for name in "$@"; do
    mkdir -p "$corpus/$name" "$target/seeds/$name"
    echo "fuzz: $name for $seconds s"
    "$programs/$name" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=65536 \
        -print_final_stats=1 -verbosity=0 -artifact_prefix="fuzz/artifacts/$name-" \
        "$corpus/$name" "$target/seeds/$name"
done
echo "fuzz: no target failed"
