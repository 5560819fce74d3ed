# make demo     boot the lab, apply the shipped blueprint, move a file through the VIP   (root)
# make test     every test that needs no root
# make e2e      every test of the whole, in the lab                                      (root)
# make soak     the long forms of some of them: an hour or two                           (root)
# make versions hold the rendered files against HAProxy and keepalived of other Debians  (root)
# make verify   format, lint, imports, vulnerabilities, tidy modules
# make deps     the Debian packages that all of this needs                               (root)

SHELL := bash
export GOTOOLCHAIN := local
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ftpdeploy
bin := $(CURDIR)/bin
lab := FTPLAB_DIR=$(or $(FTPLAB_DIR),/run/ftplab) $(bin)/ftplab
modules := . e2e

.PHONY: all build lab kubernetes demo demo-down test e2e soak versions verify fmt deps tools clean

all: build

build:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(bin)/ftpdeploy ./cmd/ftpdeploy

lab:
	cd e2e && CGO_ENABLED=0 go build -trimpath -o $(bin)/ftplab ./ftplab

# The Kubernetes that the lab and the tests run: built once, about 6 minutes on
# two cores, then taken from the cache.
kubernetes: lab
	$(bin)/ftplab build-kubernetes > $(bin)/kubernetes.path

demo: deps build lab kubernetes
	./e2e/demo.sh

demo-down: lab
	$(lab) down

test: kubernetes
	FTPDEPLOY_K8S=$$(cat $(bin)/kubernetes.path) go test -race -count=1 -timeout 20m ./...

e2e: build lab kubernetes
	cd e2e && go test -p 1 -count=1 -timeout 75m -v ./...

soak: build lab kubernetes
	cd e2e && FTPDEPLOY_SOAK=1 go test -p 1 -count=1 -timeout 5h -v -run 'TestMainJob|TestCrash' .

# Needs the network once: about a minute, then they are taken from the cache.
versions:
	.ci/suites $(cache)/suites bullseye trixie
	FTPDEPLOY_SUITES=$(cache)/suites go test -count=1 -v -run TestVersions ./steps/proxy

tools: $(cache)/tools-$(shell sha256sum tools/go.sum | cut -c1-16)/golangci-lint
tooldir = $(cache)/tools-$(shell sha256sum tools/go.sum | cut -c1-16)

%/golangci-lint:
	@echo "building golangci-lint and govulncheck once, a minute or two" >&2
	mkdir -p $(@D)
	cd tools && go build -trimpath -o $(@D)/ golang.org/x/vuln/cmd/govulncheck github.com/golangci/golangci-lint/v2/cmd/golangci-lint

verify: tools
	for m in $(modules); do (cd $$m && $(tooldir)/golangci-lint run --config $(CURDIR)/.golangci.yml ./...) || exit 1; done
	for m in $(modules) e2e/k8s126 tools; do (cd $$m && go mod tidy -diff) || exit 1; done
	TOOLDIR=$(tooldir) .ci/vulnerabilities $(modules)

fmt: tools
	for m in $(modules); do (cd $$m && $(tooldir)/golangci-lint fmt --config $(CURDIR)/.golangci.yml ./...) || exit 1; done

packages = $$(grep -v '^\#' e2e/lab/packages.txt)

deps:
	@[ "$$(dpkg-query -W -f '$${db:Status-Status}\n' $(packages) 2>&1 | sort -u)" = installed ] || { \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(packages); }

clean:
	rm -rf bin
