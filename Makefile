# Everything a user or developer runs. Needs Debian, Rust (rustup) and, for VMs, root.
#
# One profile serves programs and tests: the system under test is the one that ships, and nothing
# is compiled twice.

CARGO   ?= cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
TRIPLE  := x86_64-unknown-linux-gnu
PROFILE := release
# Seconds for each fuzz target in test-full.
FUZZ_SECONDS ?= 60
AGENT   := $(TARGET)/$(TRIPLE)/guest/mitose-guest

# rustup's place, for shells that do not have it in their path.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

NEXTEST := $(shell PATH="$(PATH)" $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)
ifeq ($(NEXTEST),yes)
RUN_TESTS = $(CARGO) nextest run --cargo-profile $(PROFILE) --workspace --locked
RUN_FULL  = $(RUN_TESTS) --profile full
else
RUN_TESTS = $(CARGO) test --$(PROFILE) --workspace --locked
RUN_FULL  = $(RUN_TESTS)
endif

.PHONY: help setup build agent test test-kvm test-full bench demo demo-kvm lint clean

help:
	@echo "make demo       fork a running Debian guest ten times and show it"
	@echo "make build      programs in $(TARGET)/$(PROFILE)"
	@echo "make test       all tests, whole-system tests included (test-full: the long ones too)"
	@echo "make test-kvm   the tests with Linux guests on real KVM in the lab (an emulated machine)"
	@echo "make demo-kvm   the demo on real KVM in the lab"
	@echo "make bench      measure forks on this machine's KVM, and the software engine beside QEMU"
	@echo "make lint       formatting, clippy and house rules"
	@echo "make setup      install the Debian packages that all of these need"
	@echo "make clean      remove what was built"

setup:
	@./scripts/setup.sh

# The guest agent is linked statically and lies beside the programs, where the daemon looks for it.
# It is built by itself, since the flags for that are not for the other programs.
build: setup agent
	$(CARGO) build --$(PROFILE) --workspace --exclude mitose-guest --locked
	@$(INSTALL_AGENT)

INSTALL_AGENT = mkdir -p $(TARGET)/$(PROFILE) && install -m 755 $(AGENT) $(TARGET)/$(PROFILE)/mitose-guest.static

agent:
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
	$(CARGO) build --package mitose-guest --profile guest --target $(TRIPLE) --locked

# Whole-system tests start the programs that lie beside the test program, so those are built first.
test: build
	$(RUN_TESTS)

test-full: build
	MITOSE_TEST_FULL=1 MITOSE_TEST_SCALE=8 PROPTEST_CASES=4096 $(RUN_FULL)
	./scripts/fuzz.sh $(FUZZ_SECONDS)
	./scripts/schemathesis.sh

# The lab is a machine with hardware virtualization, emulated: for function, not for timing.
test-kvm: build
	MITOSE_TEST_LAB=1 $(CARGO) test --$(PROFILE) --locked --package harness --test linux

demo: build
	$(CARGO) run --$(PROFILE) --locked --package harness --bin demo

demo-kvm: build
	$(CARGO) run --$(PROFILE) --locked --package harness --bin demo -- --lab

bench: build
	$(CARGO) run --$(PROFILE) --locked --package harness --bin bench

lint:
	$(CARGO) fmt --all --check
	$(CARGO) xtask tidy
	$(CARGO) clippy --$(PROFILE) --workspace --all-targets --locked -- -D warnings

clean:
	$(CARGO) clean
	rm -f demo-report.json bench-report.json
