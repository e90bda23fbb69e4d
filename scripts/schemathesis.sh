#!/usr/bin/env bash
# Sends random requests made of the interface's document to a daemon; none may surprise: no server
# error, nothing undocumented, no bad request accepted, no good one refused.
#
# Needs python3 and, the first time, PyPI. VM processes are the stand-in of the daemon's tests, so
# that VMs come and go in milliseconds. More arguments go to schemathesis, such as -n 200.
set -euo pipefail
cd "$(dirname "$0")/.."

PROGRAMS=${CARGO_TARGET_DIR:-target}/release
PROGRAMS=$(realpath "$PROGRAMS")
VERSION=4.32.5
WORK=$(mktemp -d /tmp/mitose-schema.XXXXXX)
: >"$WORK/log"
DAEMON=
trap '[ -z "$DAEMON" ] || kill "$DAEMON" 2>/dev/null || true; end_vms; rm -rf "$WORK"' EXIT

# Stand-ins outlive the daemon, as VM processes do.
end_vms() {
    for process in /proc/[0-9]*; do
        if grep -qaF "MITOSE_VM_OF=$WORK/h" "$process/environ" 2>/dev/null; then
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

[ -x "$PROGRAMS/examples/fake_vmm" ] ||
    cargo build --release --locked -p mitosed -p mitose --bins --example fake_vmm

export MITOSE_HOME=$WORK/h
# Requests name files of the host: but for its own directory, the daemon sees all of it read-only.
confined() {
    exec unshare --mount --propagation private sh -c \
        'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"' "$WORK" "$@"
}

MITOSE_VMM=$PROGRAMS/examples/fake_vmm MITOSE_KVM_DEVICE=/dev/null MITOSE_RATE_LIMIT=0 \
    confined "$PROGRAMS/mitosed" --shells 2 --listen 127.0.0.1:0 --cgroup none >"$WORK/log" 2>&1 &
DAEMON=$!
for _ in $(seq 200); do
    URL=$(sed -n 's/.*serving url=\(https:[^ ]*\).*/\1/p' "$WORK/log" | tail -n 1)
    [ -z "$URL" ] || break
    sleep 0.1
done
[ -n "$URL" ] || { cat "$WORK/log"; exit 1; }
TOKEN=$("$PROGRAMS/mitose" token create schemathesis --role admin)

# Something to find: a VM that runs, with a clone, and one that is off.
echo kernel >"$WORK/kernel"
for name in web1 web2; do
    "$PROGRAMS/mitose" run "$name" --kernel "$WORK/kernel" --memory 16M --engine kvm >/dev/null
done
"$PROGRAMS/mitose" clone web1 --name web3 >/dev/null
"$PROGRAMS/mitose" stop web2 >/dev/null

# Left out: ending the daemon ends the run; making images downloads packages for minutes, so it is
# asked about with dry_run alone, in crates/mitosed/tests.
cd "$WORK"
CODE=0
"$RUN" run "$URL/api/v1/openapi.json" \
    --header "Authorization: Bearer $TOKEN" \
    --tls-verify "$MITOSE_HOME/tls/cert.pem" \
    --checks all --no-color --generation-database none \
    --exclude-path /api/v1/daemon/stop \
    --exclude-operation-id make_image \
    "$@" || CODE=$?
kill -0 "$DAEMON" 2>/dev/null || { echo "the daemon has ended"; cat "$WORK/log"; exit 1; }
if grep -n "panicked" "$WORK/log"; then exit 1; fi
exit "$CODE"
