include tools/versions.env

TOOL := go tool -modfile=tools/go.mod
# Packages tested at once. The real Envoy and LiteLLM need processor time to be on time.
P ?= 2
# What `make test` and `make e2e` test.
PKG ?= ./...
E2E ?= ./envoy/... ./examples/... ./internal/reallitellm/...
FUZZTIME ?= 60s
VERSION ?= $(shell git describe --tags --always --dirty)

# Both print where the program is, and install it first when need be.
PARTS = ENVOY="$$(tools/install envoy)" && LITELLM="$$(tools/install litellm)" && MOTO="$$(tools/install moto)" && export ENVOY LITELLM MOTO
PARTS += && REDIS="$$(tools/install redis)" && export REDIS
PARTS += && RATELIMIT="$$(tools/install ratelimit)" && export RATELIMIT
PARTS += && CONFORMANCE="$$(tools/install conformance)" && export CONFORMANCE
PARTS += && HELM="$$(tools/build helm)" && KUBECONFORM="$$(tools/build kubeconform)" && export HELM KUBECONFORM
PARTS += && DOCKERFILE="$$(tools/build dockerfile)" && export DOCKERFILE
PARTS += && PROMTOOL="$$(tools/install promtool)" && export PROMTOOL
PARTS += && CHROMIUM="$$(tools/install chromium)" && export CHROMIUM
GOTESTSUM = $(TOOL) gotestsum --format pkgname -- -race -count=1 -timeout 30m -p $(P)
GOTEST = $(PARTS) && $(GOTESTSUM)

GORELEASER = PATH="$$(dirname "$$(tools/build cyclonedx-gomod)"):$$PATH" "$$(tools/build goreleaser)"

.DEFAULT_GOAL := help
.PHONY: e2e-keycloak e2e-gateway e2e-istio conformance versions release release-check
.PHONY: help build test soak lint fmt check generated e2e demo bench compare fuzz vuln golden generate deps relock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

build: ## Build bin/envoy-mcp-auth
	go build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/...

test: ## Run every test with the race detector, the real Envoy and the real LiteLLM (PKG=./policy/... for some)
	@$(GOTEST) $(PKG)

e2e: ## Run only the packages that start the real parts
	@$(GOTEST) $(E2E)

e2e-keycloak: ## Run the tests against the real Keycloak (needs Maven and Java 17; the first run takes 3 minutes)
	@ENVOY="$$(tools/install envoy)" && KEYCLOAK="$$(tools/install keycloak)" && export ENVOY KEYCLOAK && \
		$(GOTESTSUM) ./envoy/e2e/keycloak && \
		LITELLM="$$(tools/install litellm)" && REDIS="$$(tools/install redis)" && RATELIMIT="$$(tools/install ratelimit)" && \
		export LITELLM REDIS RATELIMIT && $(GOTESTSUM) -run FullRuns ./examples/compose

e2e-istio: ## Have Istio's own control plane read what render istio writes (WRITE=1 keeps what it makes of it; the first build takes long)
	cd tools/istio && nice go test -vet=off -count=1 -timeout 40m . $(if $(WRITE),-update)

conformance: ## Run the MCP conformance suite directly and through the proxy, and compare
	@ENVOY="$$(tools/install envoy)" && CONFORMANCE="$$(tools/install conformance)" && export ENVOY CONFORMANCE && \
		$(GOTESTSUM) ./envoy/e2e/conformance

e2e-gateway: ## Translate examples/envoy-gateway by Envoy Gateway's own code, and run the result (the first run builds egctl, which takes many minutes; WRITE=1 writes the translation)
	@EGCTL="$$(tools/build egctl)" ENVOY="$$(tools/install envoy)" && export EGCTL ENVOY && \
		go test -count=1 -timeout 10m ./examples/envoy-gateway $(if $(WRITE),-update) && \
		go test -count=1 -timeout 10m -run 'TestAttachments/Envoy_Gateway' ./envoy/e2e

versions: ## Run the contract's tests against every Envoy that is supported (WRITE=1 writes docs/versions.md)
	@. tools/versions.env && for v in $$ENVOY_OTHER_VERSIONS; do own="$$own $$(tools/install envoy-$$v)" || exit; done && \
		ENVOY_VERSIONS="$$own $$(tools/install envoy)" REDIS="$$(tools/install redis)" go test -count=1 -timeout 40m -v ./envoy/e2e/versions $(if $(WRITE),-write)

soak: ## Run what takes long: token lifetimes with outages, 200 edits, restarts under load, 50,000 outcomes (20 minutes)
	$(PARTS) && SOAK=1 go test -race -count=1 -timeout 15m -run Soak -v ./envoy/e2e
	$(PARTS) && SOAK=1 go test -count=1 -timeout 30m -run 'XDSEdits|E9_RollingRestart|E9_KillOneOfTwo|TestOutcomesEqual|TestOutcomesAcross' -v ./envoy/e2e

lint: ## Run golangci-lint (the first run builds it: about 2 minutes)
	$(TOOL) golangci-lint run

fmt: ## Format the Go files
	$(TOOL) golangci-lint fmt

check: lint test generated ## What CI runs

generated: generate ## Check that generated files are committed as they are generated
	git diff --exit-code

generate: ## Write the generated files
	go generate ./...

golden: ## Write the golden files of tests anew; read the diff before you commit it
	@grep -rl --include='*_test.go' 'Bool("update"' . | xargs -n 1 dirname | sort -u | xargs -I DIR go test -count=1 DIR -update

release-check: ## Make all that a release holds into dist/, without a tag, and look into it (the first run builds goreleaser: 10 minutes)
	$(GORELEASER) check && $(GORELEASER) release --snapshot --clean
	RELEASE_CHECK=1 go test -count=1 -v ./packaging

release: ## Publish the tag that is checked out, as a draft (needs GITHUB_TOKEN)
	$(GORELEASER) release --clean

demo: ## Walk through the whole line on real parts (LITELLM=0 without LiteLLM, KEEP=1 leaves it running)
	@KEEP='$(KEEP)' LITELLM='$(LITELLM)' go run ./examples/demo

bench: ## Benchmarks, then processor time per call next to an empty ext_proc server
	go test -run '^$$' -bench . -benchmem $(PKG)
	ENVOY="$$(tools/install envoy)" go run ./envoy/bench

compare: ## Set the token cache beside others and write the tables of docs/tokens.md (about 5 minutes)
	ENVOY="$$(tools/install envoy)" go test -count=1 -timeout 20m ./tokens/compare -write

fuzz: ## Run every fuzz target for FUZZTIME (60s; FUZZ="FuzzJWS …" for some)
	FUZZTIME=$(FUZZTIME) tools/fuzz $(FUZZ)

vuln: ## Look for known vulnerabilities in what the binary uses
	tools/vuln

deps: ## Install the real Envoy, LiteLLM and the other parts into .cache/
	@tools/install envoy
	@tools/install litellm
	@tools/install moto
	@tools/install redis
	@tools/install conformance
	@tools/install promtool
	@tools/install ratelimit
	@tools/build helm
	@tools/build kubeconform
	@tools/build dockerfile
	@tools/install chromium

relock: ## Write the locks of the real parts anew from tools/versions.env
	tools/relock

clean: ## Remove what was built and installed here
	rm -rf bin .cache
