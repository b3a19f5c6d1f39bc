# margay: the commands that people and CI use. Everything else is cargo.

CARGO ?= cargo
# Where a test run as root may also be run as an ordinary user (see scripts/test-unprivileged).
TEST_ARGS ?=

.PHONY: all build demo test test-unprivileged lint fmt bench install-deps install-test-deps clean

all: build

## build: the release binary, target/release/margay
build:
	$(CARGO) build --release --locked -p margay

## demo: three hosts, a router and six workloads on this machine, from YAML to packets
demo: install-deps build
	target/release/margay demo

## test: every test; root runs them again as an ordinary user
test: install-test-deps
	$(CARGO) build --locked -p margay
	$(CARGO) test --workspace --locked -- $(TEST_ARGS)
	$(MAKE) --no-print-directory test-unprivileged

## test-unprivileged: the system tests as an ordinary user, when this is root
test-unprivileged:
	scripts/test-unprivileged

## lint: formatting, clippy, licences
lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) deny check bans licenses sources

## fmt: format everything
fmt:
	$(CARGO) fmt --all

## bench: the criterion benchmarks
bench:
	$(CARGO) bench --workspace

## install-deps: what the demo needs and this machine lacks
install-deps:
	scripts/install-deps

## install-test-deps: what the tests need and this machine lacks
install-test-deps:
	scripts/install-deps --tests

clean:
	$(CARGO) clean
