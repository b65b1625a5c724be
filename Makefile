# Hodei's commands. `make` prints this menu; a newcomer needs `make run` and `make test`.
# Menu: "target: ... ## text" is an entry, "##@ text" a heading.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Every module of the workspace, and the pattern of all their packages
# (./... does not cross modules, so no command below uses it at the root).
MODULES := $(shell sed -n 's|^[[:space:]]*\./||p' go.work)
PKGS    := hodei.dev/...

# The programs: hodei, hodei-agent and hodei-<service>, each where its main.go is.
MAINS   := $(patsubst %/main.go,./%,$(wildcard cmd/hodei/main.go agent/cmd/hodei-agent/main.go services/*/cmd/hodei-*/main.go))
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Build, vet and lint share these, so that they share the build cache too.
GOFLAGS_STATIC := $(strip $(shell go env GOFLAGS) -trimpath)
STATIC  := CGO_ENABLED=0 GOFLAGS="$(GOFLAGS_STATIC)"
LDFLAGS := -s -w -X hodei.dev/libs/platform/process.version=$(VERSION)

# What tests are: these want real binaries, containers or a long time ...
E2E     := ^hodei\.dev/test/(e2e|compose|bench)(/|$$)
# ... and these no server at all; everything else is an integration test.
UNIT    := ^hodei\.dev/(libs/domain|libs/platform|proto|test/(arch|chaos|check|property|sim|testsum)|services/[^/]+/core|services/[^/]+/internal/app)(/|$$)

TOOLBIN := $(CURDIR)/.cache/bin
export HODEI_BIN := $(CURDIR)/bin

##@ Use
.PHONY: help run deps build clean

help: ## Print this menu
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: deps build ## Run the whole platform in one process (hodei dev)
	@exec bin/hodei dev

deps: ## Install what is missing: PostgreSQL server binaries, a C compiler for -race
	@scripts/deps

build: ## Build hodei, hodei-agent and hodei-<service> into bin/
	@mkdir -p bin
	@$(if $(MAINS),$(STATIC) go build -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ $(MAINS),echo 'no programs to build')

clean: ## Remove what was built (not the caches of tools)
	rm -rf bin dist .cache/stages

##@ Test
.PHONY: test unit integration e2e e2e-compose sim chaos chaos-short bench bench-wipe

test: deps ## Everything that CI runs
	@scripts/stages 'modules-check lint proto-check cross' 'build unit integration e2e chaos-short e2e-compose'

unit: ## Tests that need no server, with -race
	@scripts/gotest unit '$(UNIT)' ''

integration: ## Tests against real PostgreSQL and NATS, with -race
	@scripts/gotest integration . '$(UNIT)|$(E2E)'

e2e: build ## The binaries of bin/ as separate processes
	@scripts/gotest e2e '^hodei\.dev/test/e2e(/|$$)' '' -timeout=15m

e2e-compose: build ## deploy/compose comes up and runs a job (skipped without Docker or images)
	@if why=$$(scripts/compose-ready); then \
	  scripts/gotest e2e-compose '^hodei\.dev/test/compose(/|$$)' '' -timeout=20m; \
	else echo "skipped: $$why"; fi

sim: ## The deterministic simulation over many seeds (SEEDS=10000, BASE=1 for the same ones)
	@go test hodei.dev/test/sim -run TestSim -v -timeout=0 -args -seeds=$(or $(SEEDS),10000) $(if $(BASE),-base=$(BASE))

# A plan is a seed: the same one makes the same faults at the same times. rN: N random ones.
DURATION ?= 3m
PARALLEL ?= 2
RATE     ?= 3
NODES    ?= 1
REPORT   ?=
CHAOS    ?=

chaos: deps build .cache/bin/chaos ## Break the platform under load (SEEDS=r20 DURATION=3m PARALLEL=2 RATE=3 NODES=1|3 REPORT=docs/reliability.md)
	@.cache/bin/chaos -seeds $(or $(SEEDS),r20) -duration $(DURATION) -parallel $(PARALLEL) -rate $(RATE) -nodes $(NODES) -report "$(REPORT)" $(CHAOS)

chaos-short: SEEDS = 11,23,42,r1
chaos-short: DURATION = 40s
chaos-short: chaos ## A few minutes of it: three fixed plans and a random one

.PHONY: .cache/bin/chaos
.cache/bin/chaos:
	@$(STATIC) go build -buildvcs=false -o $@ ./test/chaos

bench: deps build ## Measure a platform of its own, for docs/performance.md (BENCH=-short: a fifth)
	@go run ./test/bench $(BENCH)

bench-wipe: deps build ## Measure the recovery from a lost NATS store: 1 M events, 500 events/s
	@HODEI_BIN=$(CURDIR)/bin go test hodei.dev/test/e2e -run '^$$' -bench TheStoreIsWiped -benchtime 1x -timeout 30m -v

##@ Check
.PHONY: lint fmt modules-check cross proto-check

lint: .cache/golangci-lint.stamp ## golangci-lint over all modules
	@scripts/lint run

fmt: .cache/golangci-lint.stamp ## Format Go code (gofumpt, goimports) and .proto files
	@scripts/lint fmt
	@$(MAKE) proto-fmt

modules-check: ## Build and vet each module alone, as its own go.mod says
	@$(STATIC) scripts/modules-check $(MODULES)

cross: ## hodei and hodei-agent compile for macOS
	@$(if $(MAINS),GOOS=darwin GOARCH=arm64 $(STATIC) go build $(filter ./cmd/% ./agent/%,$(MAINS)),echo 'no programs to build')

proto-check: .cache/buf.stamp .cache/protoc-gen.stamp ## Lint .proto files; breaking changes; generated code is current
	@PATH="$(TOOLBIN):$$PATH" scripts/proto-check

##@ Change
.PHONY: generate tidy proto-fmt

generate: .cache/buf.stamp .cache/protoc-gen.stamp ## Generate code: *.pb.go, then go generate
	@if [ -n "$$(find proto -name '*.proto' -print -quit)" ]; then cd proto && PATH="$(TOOLBIN):$$PATH" buf generate; fi
	@go generate $(PKGS)

tidy: ## go mod tidy in every module, dependencies first
	@for m in $(filter libs/%,$(MODULES)) $(filter proto agent,$(MODULES)) $(filter services/%,$(MODULES)) $(filter cmd/%,$(MODULES)) $(filter test,$(MODULES)); do \
	  echo "$$m"; (cd $$m && GOWORK=off go mod tidy); done

proto-fmt: .cache/buf.stamp
	@if [ -n "$$(find proto -name '*.proto' -print -quit)" ]; then PATH="$(TOOLBIN):$$PATH" buf format -w proto; fi

# Tools: one module each (their dependencies do not agree), built once into .cache/bin.
.cache/%.stamp: tools/%/go.mod tools/%/go.sum
	@mkdir -p $(TOOLBIN)
	@echo "building $* (the first time takes minutes)" >&2
	@GOWORK=off CGO_ENABLED=0 go build -C tools/$* -o $(TOOLBIN)/ tool
	@touch $@
