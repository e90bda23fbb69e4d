#!/usr/bin/env bash
# Sends random requests made of the interface's document to a daemon; none may surprise: no server
# error, nothing undocumented, no bad request accepted, no good one refused.
#
#   scripts/schemathesis.sh [--stand-in] [OPTIONS OF SCHEMATHESIS, such as -n 200]
#
# Needs python3 and, the first time, PyPI. VMs are bare-metal guests, on the machine's KVM or on the
# software engine; with --stand-in VM processes are those of the daemon's tests, which need neither.
set -euo pipefail
cd "$(dirname "$0")/.."

PROGRAMS=$(realpath "${MITOSE_PROGRAMS:-${CARGO_TARGET_DIR:-target}/release}")
VERSION=4.32.5
WORK=$(mktemp -d /tmp/mitose-schema.XXXXXX)
: >"$WORK/log"
DAEMON=
trap '[ -z "$DAEMON" ] || kill "$DAEMON" 2>/dev/null || true; end_vms; rm -rf "$WORK"' EXIT

# VM processes outlive the daemon.
end_vms() {
    for process in /proc/[0-9]*; do
        if grep -qaF "$WORK/h" "$process/environ" "$process/cmdline" 2>/dev/null; then
            kill -9 "${process#/proc/}" 2>/dev/null || true
        fi
    done
}

if [ -n "${MITOSE_SCHEMATHESIS:-}" ]; then
    RUN=$MITOSE_SCHEMATHESIS
else
    python3 -m venv "$WORK/venv"
    "$WORK/venv/bin/pip" --quiet install "schemathesis==$VERSION"
    RUN=$WORK/venv/bin/schemathesis
fi

ENGINE=soft
[ ! -w /dev/kvm ] || ENGINE=kvm
if [ "${1:-}" = --stand-in ]; then
    shift
    [ -x "$PROGRAMS/examples/fake_vmm" ] ||
        cargo build --release --locked -p mitosed -p mitose --bins --example fake_vmm
    export MITOSE_VMM=$PROGRAMS/examples/fake_vmm MITOSE_KVM_DEVICE=/dev/null
    ENGINE=kvm
    echo kernel >"$WORK/kernel"
else
    [ -x "$PROGRAMS/bare-guest" ] ||
        cargo build --release --locked -p mitosed -p mitose-vmm -p mitose -p bare_guests --bins
    "$PROGRAMS/bare-guest" guest >"$WORK/kernel"
fi
truncate -s 4M "$WORK/disk"
mkdir "$WORK/second"

export MITOSE_HOME=$WORK/h
# Requests name files of the host: but for its own directory, the daemon sees all of it read-only.
confined() {
    exec unshare --mount --propagation private sh -c \
        'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"' "$WORK" "$@"
}

MITOSE_MIRROR=http://127.0.0.1:9 confined "$PROGRAMS/mitosed" \
    --shells 2 --listen 127.0.0.1:0 >"$WORK/log" 2>&1 &
DAEMON=$!
for _ in $(seq 200); do
    URL=$(sed -n 's/.*serving url=\(https:[^ ]*\).*/\1/p' "$WORK/log" | tail -n 1)
    [ -z "$URL" ] || break
    sleep 0.1
done
[ -n "$URL" ] || { cat "$WORK/log"; exit 1; }
mitose() { "$PROGRAMS/mitose" "$@" >/dev/null; }
TOKEN=$("$PROGRAMS/mitose" token create schemathesis --role admin)

# Something to find, of each kind.
mitose folder create team
mitose respool create small
mitose datastore add second --path "$WORK/second"
for name in web1 web2; do
    mitose run "$name" --kernel "$WORK/kernel" --disk "$WORK/disk" --memory 16M --engine "$ENGINE"
done
mitose clone web1 --name web3
mitose stop web2 --force
mitose snapshot create web1 before --memory
mitose prepare web1
mitose pool create web2 --datastore second --count 1

cd "$WORK"
# A good request may name a version that the object does not have, and a bad one may name none.
cat >schemathesis.toml <<'END'
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "412", "5xx"]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "412", "415", "422", "428", "429", "5xx"]
END
CODE=0
"$RUN" run "$URL/api/v1/openapi.json" \
    --header "Authorization: Bearer $TOKEN" \
    --tls-verify "$MITOSE_HOME/tls/cert.pem" \
    --checks all --no-color --generation-database none \
    "$@" || CODE=$?
kill -0 "$DAEMON" 2>/dev/null || { echo "the daemon has ended"; cat "$WORK/log"; exit 1; }
if grep -n "panicked" "$WORK/log"; then exit 1; fi
exit "$CODE"
