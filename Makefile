# agent-relay. `make run` shows it working, `make test` proves it; both need Rust, a C compiler and make.

CARGO ?= cargo
PREFIX ?= $(HOME)/.local
INTEROP_DIR ?= target/interop
SEEDS ?= 20000
FIRST ?= 1
CHAOS ?= 500
RESTARTS ?= 1000
STORM ?= 600

# The binary is static: with musl where that target and its compiler are installed, else with the system's own libc.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
ARCH := $(firstword $(subst -, ,$(HOST)))
MUSL := $(shell command -v musl-gcc >/dev/null && rustup target list --installed 2>/dev/null | grep -x '$(ARCH)-unknown-linux-musl')
TARGET ?= $(or $(MUSL),$(HOST))
BIN := target/$(TARGET)/release/agent-relay
# Random bytes by the system call: a static binary would look for /dev/urandom, which an empty chroot does not have.
# Relocations in their short form (0.2 MB) where the C library that is linked in can read them.
SHORT := $(if $(MUSL),,$(shell getconf GNU_LIBC_VERSION 2>/dev/null | awk '{ split($$2, v, "."); if (v[1] > 2 || v[2] >= 36) print "-C link-arg=-Wl,-z,pack-relative-relocs" }'))
STATIC := RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom" $(SHORT)'
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
ARM := aarch64-unknown-linux-gnu
ARM_LINKER := $(shell command -v aarch64-linux-gnu-gcc)
ARM_TARGET := $(shell rustup target list --installed 2>/dev/null | grep -x $(ARM))

.PHONY: help run host run-host build static statics test loaded faults check fmt clippy defects sim chaos bench interop afternoon install dist need

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

need:
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing; install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"; exit 2; }
	@command -v cc >/dev/null || { echo "a C compiler is missing (SQLite is built with it); install it with: sudo apt-get install build-essential"; exit 2; }

run: need ## talk to the built-in demo agent through a hub and a runner (the build that `make test` uses)
	@$(CARGO) run --locked -- up

host: need ## a host in small: hub, orchestrator and a spawned demo agent (also: make run-host)
	@$(CARGO) build --locked --bins
	@sh tests/run-host.sh "$(abspath target/debug/agent-relay)"

run-host: host

build: static

static: need ## build the release binary, static: $(BIN)
	@$(STATIC) $(CARGO) build --release --locked --target $(TARGET)
	@! ldd $(BIN) 2>/dev/null | grep -q '=>' || { echo "$(BIN) is not static"; exit 1; }

test: need ## all tests: tables, simulation, recordings, scenarios, abuse
	@CARGO="$(CARGO)" sh tests/all.sh -- --test-threads=8

loaded: need ## all tests five times beside four busy loops; RECORD=1 writes tests/RESULTS.md
	@CARGO="$(CARGO)" RECORD="$(RECORD)" sh tests/loaded.sh

fmt: need
	@$(CARGO) fmt --check

clippy: need
	@$(CARGO) clippy --locked --all-targets -- -D warnings

statics: static ## the static binary by itself: names, certificates, an empty chroot
	@STATIC_BIN="$(abspath $(BIN))" $(CARGO) test --locked --test static -- --ignored --nocapture

# Within `make check` all tests have run already: there it is enough that each named one exists once and is not ignored.
FAULTS := run
faults: need ## run the test of each fault in tests/FAULTS.md (make check only demands that each one exists)
	@CARGO="$(CARGO)" INTEROP_DIR="$(abspath $(INTEROP_DIR))" sh tests/faults.sh $(FAULTS)

check: FAULTS := list
check: fmt clippy test faults statics interop ## what CI runs

defects: need ## plant each known defect and see that its test catches it; RECORD=1 writes tests/RESULTS.md, NAMES="..." takes some
	@CARGO="$(CARGO)" RECORD="$(RECORD)" sh tests/defects/run.sh $(NAMES)

sim: need ## more seeds of the simulation: make sim SEEDS=100000
	@SIM_FIRST=$(FIRST) SIM_SEEDS=$(SEEDS) $(CARGO) test --release --locked --test sim -- --nocapture every_seed

chaos: need ## random kills of real processes, and backups put back meanwhile, 500 seeds: make chaos CHAOS=500
	@$(CARGO) build --locked --examples
	@CHAOS_SEEDS=$(CHAOS) $(CARGO) test --locked --test it -- --nocapture chaos::random_ random_kills
	@CHAOS_RESTARTS=$(RESTARTS) CHAOS_HOST_SECONDS=$(STORM) $(CARGO) test --locked --test it -- --nocapture --test-threads=1 orchestrator::chaos a_killed_orchestrator

bench: static ## print the table of figures; RECORD=1 writes tests/FIGURES.md, OLD_BIN=path measures an older binary beside
	@RECORD="$(RECORD)" BENCH_BIN="$(abspath $(BIN))" OLD_BIN="$(abspath $(OLD_BIN))" INTEROP_DIR="$(INTEROP_DIR)" $(CARGO) bench --locked --bench figures

# Without npm it is skipped with a word, and fails where CI is set.
interop: need ## real agents from their packages (INTEROP_DIR), Claude Code among them, and an older version of ours in every pair with this one
	@code=0; INTEROP_DIR="$(INTEROP_DIR)" sh tests/interop/install.sh || code=$$?; \
	if [ $$code = 3 ] && [ -z "$$CI" ]; then echo "interop: all ignored, npm is missing"; exit 0; fi; \
	[ $$code = 0 ] && INTEROP_DIR="$(INTEROP_DIR)" CARGO="$(CARGO)" sh tests/interop/old.sh && \
	INTEROP_DIR="$(abspath $(INTEROP_DIR))" CARGO="$(CARGO)" sh tests/all.sh --test interop -- --ignored --skip afternoon --nocapture

PROVIDER ?= claude
SEED ?= 1
PART ?= 1
afternoon: need ## a long run of a real provider with kills, outages and interrupts: make afternoon PROVIDER=claude (or codex; PART=10: a tenth)
	@INTEROP_DIR="$(INTEROP_DIR)" sh tests/interop/install.sh
	@INTEROP_DIR="$(abspath $(INTEROP_DIR))" AFTERNOON="$(PROVIDER)" AFTERNOON_SEED="$(SEED)" AFTERNOON_PART="$(PART)" $(CARGO) test --locked --test interop -- --ignored --nocapture afternoon

# What is installed below a prefix: $(call layout,binary,prefix,a binary that runs here)
define layout
	install -d "$(2)/bin" "$(2)/share/man/man1" "$(2)/share/bash-completion/completions" "$(2)/share/zsh/site-functions" \
	  "$(2)/share/fish/vendor_completions.d" "$(2)/share/agent-relay"
	install -m 755 "$(1)" "$(2)/bin/agent-relay"
	ln -sf agent-relay "$(2)/bin/claude-relay"
	ln -sf agent-relay "$(2)/bin/codex-relay"
	"$(3)" generate man >"$(2)/share/man/man1/agent-relay.1"
	"$(3)" generate bash >"$(2)/share/bash-completion/completions/agent-relay"
	"$(3)" generate zsh >"$(2)/share/zsh/site-functions/_agent-relay"
	"$(3)" generate fish >"$(2)/share/fish/vendor_completions.d/agent-relay.fish"
	"$(3)" generate unit agent | sed 's|^ExecStart="[^"]*"|ExecStart=%h/.local/bin/agent-relay|' >"$(2)/share/agent-relay/agent-relay@.service"
	"$(3)" generate unit hub | sed 's|^ExecStart="[^"]*"|ExecStart=%h/.local/bin/agent-relay|' >"$(2)/share/agent-relay/agent-relay-hub.service"
	install -m 755 hooks/relay-hook.sh "$(2)/share/agent-relay/relay-hook.sh"
endef

# A tar file of that with its checksum: $(call pack,binary,target)
define pack
	rm -rf "target/dist/agent-relay-$(VERSION)-$(2)"
	$(call layout,$(1),target/dist/agent-relay-$(VERSION)-$(2),$(BIN))
	cp README.md LICENSE "target/dist/agent-relay-$(VERSION)-$(2)/"
	cd "target/dist/agent-relay-$(VERSION)-$(2)" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS
	tar -C target/dist --owner=0 --group=0 --sort=name -czf "target/dist/agent-relay-$(VERSION)-$(2).tar.gz" "agent-relay-$(VERSION)-$(2)"
	cd target/dist && sha256sum "agent-relay-$(VERSION)-$(2).tar.gz" >"agent-relay-$(VERSION)-$(2).tar.gz.sha256"
	@ls -l "target/dist/agent-relay-$(VERSION)-$(2).tar.gz"
endef

install: static ## install into PREFIX (default ~/.local): binary, links, man page, completions
	$(call layout,$(BIN),$(DESTDIR)$(PREFIX),$(BIN))

dist: static ## a tar file with everything and its checksum, in target/dist; arm64 too where a cross linker is there
	$(call pack,$(BIN),$(TARGET))
ifneq ($(and $(ARM_LINKER),$(ARM_TARGET),$(filter-out aarch64,$(ARCH))),)
	$(STATIC) CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$(notdir $(ARM_LINKER)) $(CARGO) build --release --locked --target $(ARM)
	$(call pack,target/$(ARM)/release/agent-relay,$(ARM))
else
	@echo "dist: no arm64 beside it: that needs gcc-aarch64-linux-gnu and 'rustup target add $(ARM)'"
endif
