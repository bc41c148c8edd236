# Every target works on a fresh Debian machine as root with python3 >= 3.11, make and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAB_PACKAGES := busybox-static conntrack containerd dbus-daemon gcc iproute2 iptables libc6-dev patchelf procps prometheus prometheus-node-exporter runc util-linux
CLUSTER_PACKAGES := $(LAB_PACKAGES) containernetworking-plugins debian-archive-keyring dpkg-dev patch xz-utils
VM_PACKAGES := busybox-static cpio e2fsprogs kmod mmdebstrap qemu-system-x86 util-linux
IMAGE_PACKAGES := buildah debootstrap
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' agent/__init__.py)
# The image's base in a registry, with its digest; empty: Debian's own packages, by debootstrap.
BASE ?=
# Node may have come from elsewhere, as newer ones do; Debian's npm does not go with those, and is not needed then.
NODE_PACKAGES := $(if $(shell command -v npm),,nodejs npm)

# Runs a command and fails if it leaves anything on the machine.
TRACELESS := $(BIN)/python -m tools.leaves_no_trace

# Compiled once, not by each of the processes that the tests start.
export PYTHONDONTWRITEBYTECODE :=

# What runs on a real containerd: on the version that CONTAINERD names, or on that of its suffix, as in lane-lab-2.1.
CONTAINERD_LANES := lane-watching lane-image lane-remediation lane-cluster lane-parts lane-lab
REPEATED_LANES := $(foreach version,1.6 1.7 2.1,$(addsuffix -$(version),$(CONTAINERD_LANES)))
# In the order in which they start, the long ones first.
LANES := lane-watching lane-cluster-2.1 lane-image lane-remediation lane-image-2.1 lane-remediation-2.1 lane-parts lane-lab \
	lane-parts-2.1 lane-lab-2.1 lane-parts-1.7 lane-lab-1.7 lane-delivery
# Without a suffix a lane runs on 1.6.
MATRIX_LANES := $(filter-out $(LANES) $(LANES:=-1.6),$(REPEATED_LANES))

.PHONY: help run demo node node-down test on-real-parts test-matrix kubernetes-in-background lane-delivery $(CONTAINERD_LANES) $(REPEATED_LANES) vm-test unit lint format proto proto-release docs monitoring tested-on bench setup lab-packages cluster-packages node-packages vm-packages image image-size wheels lock clean

## run: look at this very machine once
run: setup
	@$(BIN)/nodediag check; code=$$?; \
	case $$code in \
		0) echo "exit 0: no condition is True";; \
		1) echo "exit 1: some condition is True";; \
		2) echo "exit 2: something could not be determined";; \
		*) exit $$code;; \
	esac

## help: list the targets
help:
	@sed -n 's/^## //p' Makefile

## demo: the whole tour on real parts, under two minutes
demo: setup-lab lab-packages
	@$(BIN)/python -m tests.demo

## node: start a real one-node Kubernetes cluster in namespaces of its own, with the image on it; CONTAINERD=1.6|1.7|2.1
node: export CONTAINERD ?= 2.1
node: setup-test cluster-packages
	@$(BIN)/python -m tests.node up

## node-down: take it away, whatever has become of it
node-down:
	@if [ -e build/node ]; then $(BIN)/python -m tests.node down; else echo "No node runs here."; fi

## test: everything, on real parts. What looks at this whole machine runs by itself; then several lanes side by side
test: kubernetes-in-background unit lab-packages node-packages cluster-packages vm-packages
	@$(TRACELESS) $(MAKE) --no-print-directory on-real-parts

# Each lane that is run by itself is compared by itself; within this, all of them together. All of them run, also after
# one has failed.
on-real-parts:
	@failed=; \
	$(BIN)/python -m pytest tests/integration -n 4 --dist loadfile || failed="$$failed tests/integration"; \
	$(BIN)/python -m pytest tests/machine || failed="$$failed tests/machine"; \
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(LANES) || failed="$$failed lanes"; \
	$(MAKE) --no-print-directory vm-test || failed="$$failed vm-test"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

## test-matrix: the lanes on containerd 1.6, 1.7 and 2.1 that `make test` leaves out
test-matrix: setup-test lab-packages node-packages cluster-packages
	@$(TRACELESS) $(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(MATRIX_LANES)

# A version that cannot be fetched is skipped with its reason, and fails with STRICT=1.
$(REPEATED_LANES): lane-%:
	@$(MAKE) --no-print-directory lane-$(firstword $(subst -, ,$*)) CONTAINERD=$(lastword $(subst -, ,$*))

# In a node of its own a lane sees none of the faults that another one makes.
lane-watching: setup-test lab-packages
	$(TRACELESS) tools/in-a-node $(BIN)/python -m pytest tests/e2e/watching

lane-remediation: setup-test lab-packages
	$(TRACELESS) tools/in-a-node $(BIN)/python -m pytest tests/e2e/remediation

lane-cluster: setup-test cluster-packages
	$(TRACELESS) $(BIN)/python -m pytest tests/cluster

# What it needs of Debian is installed before: apt runs once at a time. The lane that needs it waits for its end.
kubernetes-in-background: cluster-packages
	@mkdir -p build; nice -n 19 tools/get-kubernetes >build/kubernetes.log 2>&1 &

lane-image: setup-test lab-packages
	$(TRACELESS) $(BIN)/python -m pytest tests/image

lane-parts: setup-test lab-packages
	$(TRACELESS) $(BIN)/python -m pytest tests/parts -n 2 --dist loadfile

lane-lab: setup-test lab-packages
	$(TRACELESS) $(BIN)/python -m pytest tests/lab

lane-delivery: setup-test lab-packages node-packages
	$(BIN)/python -m pytest tests/delivery tests/simulation -n 2

## vm-test: what needs systemd, cgroup v2 or AppArmor, in a virtual machine; it takes both cores, so by itself
vm-test: setup-test vm-packages
	$(TRACELESS) $(BIN)/python -m pytest tests/vm

## unit: only what needs no container engine; these wait more than they work, so several at once
unit: setup-test lab-packages
	$(BIN)/python -m pytest tests/unit tests/golden -n 4 --dist worksteal

## lint: style, types, the import law, the protos, and whether generated files are what they are generated from
lint: setup-lint $(if $(CI),node-packages)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@tools/compare-generated $(BIN)
	@tools/lint-proto

format: setup-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## proto: generate agent/host/pb from proto/third_party, and agent/api/pb from proto/nodediag
proto: setup-lint
	@tools/generate-proto $(BIN)/python agent/host/pb agent/api/pb

## proto-release: record proto/ as the API that is released; from then on `make lint` refuses what would break its clients
proto-release: node-packages
	@tools/release-proto

## docs: generate docs/actions.md, conditions.md, metrics.md and settings.md from the code
docs: setup
	@$(BIN)/python -m tools.generate_docs docs

## monitoring: generate deploy/prometheus, deploy/grafana and docs/alerts.md from the code
monitoring: setup
	@$(BIN)/python -m tools.generate_monitoring .

## tested-on: make docs/tested-on.md from what the test runs in this checkout have recorded (build/detections)
tested-on: setup
	@$(BIN)/python -m tools.tested_on

## bench: the budgets, each against something run beside it
bench: setup-lab lab-packages
	@$(BIN)/python -m tests.bench

## image: build the image into build/nodediag.tar, an OCI archive; BASE=NAME@sha256:... takes a base from a registry
image: wheels
	@tools/debian-packages $(IMAGE_PACKAGES)
	@tools/image/build $(VERSION) build/nodediag.tar $(BASE)

## image-size: say in docs/image.md how large the image is and what fills it
image-size: image
	@$(BIN)/python -m tools.image.contents build/nodediag.tar >docs/image.md
	@cat docs/image.md

## wheels: download the locked wheels that the image is made of
wheels: setup
	@tools/image/wheels $(BIN)/pip build/wheels

## lock: choose the versions in the image, with their hashes; needs the package registry
lock: setup-lint
	@tools/lock $(BIN)/uv

setup:
	@tools/setup $(PYTHON) $(VENV)

setup-lab:
	@tools/setup $(PYTHON) $(VENV) lab

setup-test:
	@tools/setup $(PYTHON) $(VENV) test

setup-lint:
	@tools/setup $(PYTHON) $(VENV) test,lint

lab-packages:
	@tools/debian-packages $(LAB_PACKAGES)

cluster-packages:
	@tools/debian-packages $(CLUSTER_PACKAGES)

vm-packages:
	@tools/debian-packages $(VM_PACKAGES)

node-packages:
	@tools/debian-packages $(NODE_PACKAGES)

clean: node-down
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
