# agent-relay. `make run` shows it working, `make test` proves it; both need Rust, a C compiler and make.

CARGO ?= cargo
PREFIX ?= $(HOME)/.local
BIN := target/release/agent-relay
SEEDS ?= 20000
FIRST ?= 1
CHAOS ?= 200

.PHONY: help run build test check fmt clippy defects sim chaos bench interop install need

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

need:
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing; install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"; exit 2; }
	@command -v cc >/dev/null || { echo "a C compiler is missing (SQLite is built with it); install it with: sudo apt-get install build-essential"; exit 2; }

run: build ## talk to the built-in demo agent through a hub and a runner
	@$(BIN) up

build: need ## build the release binary
	@$(CARGO) build --release --locked

test: need ## all tests: tables, simulation, recordings, scenarios
	@$(CARGO) test --locked -- --test-threads=4

fmt: need
	@$(CARGO) fmt --check

clippy: need
	@$(CARGO) clippy --locked --all-targets -- -D warnings

check: fmt clippy test interop ## what CI runs

defects: need ## plant each known defect and see that its test catches it
	@CARGO="$(CARGO)" sh tests/defects/run.sh

sim: need ## more seeds of the simulation: make sim SEEDS=100000
	@SIM_FIRST=$(FIRST) SIM_SEEDS=$(SEEDS) $(CARGO) test --release --locked --test sim -- --nocapture every_seed

chaos: need ## more random kills of real processes: make chaos CHAOS=500
	@CHAOS_SEEDS=$(CHAOS) $(CARGO) test --locked --test it -- --nocapture random_kills

bench: build ## print the table of figures
	@$(CARGO) bench --locked --bench figures

interop: ## real provider programs (none yet: they come with their providers)
	@echo "interop: no real provider programs in the list yet; 0 run"

install: build ## install into PREFIX (default ~/.local)
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 $(BIN) "$(DESTDIR)$(PREFIX)/bin/agent-relay"
	ln -sf agent-relay "$(DESTDIR)$(PREFIX)/bin/claude-relay"
	ln -sf agent-relay "$(DESTDIR)$(PREFIX)/bin/codex-relay"
