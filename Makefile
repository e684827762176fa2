# Everything a checkout needs; `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where a registry has builds without CUDA, a version of one saves gigabytes.
TORCH ?= torch==2.13.0
# Stamps: what `make run` needs is installed, and on top of it what the other targets need.
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.installed-dev
LOWEST := .venv-lowest
# Servers of other makers, each in an environment of its own, by what pip is to install. The toolkit
# itself is run from its source, whose setup.py asks for far more than text classification needs.
SERVERS := .servers
infinity := infinity_emb[server,torch]==0.0.77 click==8.1.8 transformers==4.51.3
mlflow := mlflow==3.17.2 transformers==4.51.3
toolkit := transformers==4.51.3 starlette<1 uvicorn orjson pillow
STORAGE := $(SERVERS)/storage/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup run test test-faults test-lowest test-transformers test-ray test-servers test-storage bench bench-peers bench-servers bench-workers install-servers simulate lint docs images format pins clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "classify-pipeline needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -c constraints.txt -e '.[local,language]'
	@touch $@

$(DEVELOP): $(INSTALLED)
	$(PIP_INSTALL) -c constraints.txt -e '.[local,language,dev]'
	@touch $@

setup: $(DEVELOP) ## make .venv and install the project into it, pinned

run: $(INSTALLED) ## label data/sample with its languages by the embedded endpoint, and show the result
	$(BIN)/classify run --config configs/sample.yaml --overwrite
	@$(BIN)/python -c "import pyarrow.parquet as p; t = p.read_table('output/reviews.parquet'); \
	  print('\noutput/reviews.parquet,', t.num_rows, 'rows; the first ones:\n'); \
	  print(t.slice(0, 8).select(['id', 'country', 'review', 'label', 'score']).to_pandas().to_string(index=False, max_colwidth=48))"

test: $(DEVELOP) ## run the tests; installs Chromium where it can
	@$(BIN)/python -m tests.report.chromium
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-faults: $(DEVELOP) ## kill, crash and cut the power many times, and report fault by fault
	$(BIN)/python -m pytest -p tests.faults.report -n 2 --dist worksteal -m 'fault and not storage'

test-lowest: ## install the oldest versions that pyproject.toml allows, and run tests with them
	rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[local,language,dev]' \
	  $$($(LOWEST)/bin/python -c "import tomllib; print(*(each.replace('>=', '==') for each in \
	  tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))")
	$(LOWEST)/bin/python -m pytest -n 2 tests/client tests/pool tests/run tests/observers \
	  tests/producer tests/writer tests/test_config.py tests/test_api_tables.py

test-transformers: $(DEVELOP) ## install torch and transformers, and run the tests that need them
	$(PIP_INSTALL) -c constraints.txt -e '.[local,language,dev,transformers]' '$(TORCH)'
	$(BIN)/python -m pytest -m transformers

$(SERVERS)/%/.installed: Makefile
	rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' $(patsubst %,'%',$($*))
	@touch $@

test-ray: $(DEVELOP) ## install Ray with its dashboard, and run the tests that need it
	$(PIP_INSTALL) -c constraints.txt -e '.[local,language,dev,ray]' 'ray[default]'
	$(BIN)/python -m pytest -m ray tests/ray

test-servers: $(DEVELOP) $(SERVERS)/infinity/.installed $(SERVERS)/mlflow/.installed ## install infinity and MLflow, and label tables with them
	$(BIN)/python -m pytest -m servers

$(STORAGE): Makefile
	rm -rf $(@D) && mkdir -p $(@D)
	npm install --silent --no-audit --no-fund --prefix $(@D) azurite@3.35.0 s3rver@3.7.1
	@touch $@

test-storage: $(DEVELOP) $(STORAGE) ## install Azurite and s3rver (needs npm), and run the tests that need them
	$(BIN)/python -m pytest -n 2 --dist worksteal -m storage

lint: $(DEVELOP) ## ruff (rules and format), mypy, and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DEVELOP) ## write the tables of docs/reference from the code
	$(BIN)/python docs/generate.py

images: $(DEVELOP) ## make the images of the documentation again, in Chromium; ARGS=report, ...
	$(BIN)/python docs/images/make.py $(ARGS)

bench: $(DEVELOP) ## measure against a bare loop and the peers, and write benchmarks/RESULTS.md
	$(BIN)/python benchmarks/bench.py

bench-peers: ## install each peer into an environment of its own, for make bench
	for peer in "hub huggingface_hub==2.4.0 pyarrow==26.0.1" \
	  "datasets_map datasets==5.2.0 aiohttp==3.14.5 pyarrow==26.0.1" \
	  "daft_udf daft==0.7.26 aiohttp==3.14.5 pyarrow==25.0.1" \
	  "ray_data ray[data]==2.60.0 aiohttp==3.14.5 pyarrow==26.0.1 pydantic==2.14.3"; do \
	  set -- $$peer; name=$$1; shift; \
	  $(PYTHON) -m venv benchmarks/.peers/$$name && \
	  benchmarks/.peers/$$name/bin/python -m pip install --quiet --disable-pip-version-check "$$@" \
	  || echo "$$name: not installed"; done

# Its defaults are what a better batch size is measured against.
BASELINE_COMMIT := 01367ba
BASELINE := benchmarks/.baseline-$(BASELINE_COMMIT)
$(BASELINE):
	rm -rf $@.tmp && mkdir $@.tmp && git archive $(BASELINE_COMMIT) | tar x -C $@.tmp && mv $@.tmp $@

bench-servers: $(DEVELOP) $(BASELINE) ## measure auto against a grid of fixed settings; ARGS=--quick, ARGS='--server padded', ...
	$(BIN)/python benchmarks/servers.py --baseline $(BASELINE) $(ARGS)

bench-workers: $(DEVELOP) ## measure processes against each other, and S3 against the local disk
	$(BIN)/python benchmarks/workers.py $(ARGS)

simulate: $(DEVELOP) ## simulate 10^9 rows and 1,000 workers; ARGS=--quick, ARGS='--only memory', ...
	$(BIN)/python benchmarks/simulate.py $(ARGS)

install-servers: $(SERVERS)/infinity/.installed $(SERVERS)/toolkit/.installed ## install the real servers of make bench-servers

format: $(DEVELOP) ## let ruff format, and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pins: ## rewrite constraints.txt with the newest versions that fit
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[local,language,dev]'
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt
	@touch $(INSTALLED) $(DEVELOP)

clean: ## remove .venv, caches and output/
	rm -rf $(VENV) $(LOWEST) $(SERVERS) output build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
