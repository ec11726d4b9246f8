# `make demo` and `make test` work as the first command in a fresh clone; both install what they need. `make help` lists all.
# ARGS goes to the demo, the benchmarks and pytest: make demo ARGS="--annotate 80 --exit --json", make test ARGS="-k engine".
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
LABEL_STUDIO := .label-studio/venv

# What `make check` leaves out; tests/conftest.py sets the markers.
SLOW := browser or labelstudio or postgres or process or ray or slow

.PHONY: help demo check test format image-test lint bench reference fuzz audit lock clean
.DELETE_ON_ERROR:

# Where it is set, each of the hundreds of processes that the tests start would compile PyTorch's sources anew.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -nE 's/^([a-z-]+):.*  # (.*)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(BIN)/.runtime $(LABEL_STUDIO)/.ready  # Label Studio and the backend with sample images; ARGS="--annotate 80 --exit"
	@$(BIN)/neat-backend demo $(ARGS)

check: lint  # lint and the fast tests: no process, no Label Studio, no PostgreSQL, no browser
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not ($(SLOW))" $(ARGS)

test: $(BIN)/.ready $(LABEL_STUDIO)/.ready  # all tests; ARGS="-k engine" for some
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

format: $(BIN)/.ready  # put the code into the form that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Builds the image with buildah on a Debian made by debootstrap, and starts it. Needs root and both programs.
image-test: $(BIN)/.ready $(LABEL_STUDIO)/.ready  # the container image, built and started
	NEAT_TEST_REQUIRE=image,labelstudio $(BIN)/python -m pytest tests/test_image.py $(ARGS)

.PHONY: compose-test
compose-test: $(BIN)/.ready  # the compose file on a real Docker engine; ARGS="--light --engine /srv/docker", ARGS=--help
	@$(BIN)/python -m tests.compose $(ARGS)

.PHONY: chaos
chaos: $(BIN)/.ready  # kill everything for minutes; ARGS="--seed 1 --minutes 8 --kills 200 --events 5000 --database postgresql --json"
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: doctor-page
doctor-page: $(BIN)/.ready  # docs/doctor.md anew, from what the command prints beside a real Label Studio
	@NEAT_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/e2e/test_doctor.py

lint: $(BIN)/.ready  # ruff, mypy, hadolint, the schemas of compose file and manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose/secrets.yml
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/neat-backend.yaml

bench: $(BIN)/.ready $(LABEL_STUDIO)/.ready  # the short benchmarks; ARGS=--json for programs
	@$(BIN)/python -m benchmarks rerank --pool 50000 --labelled 5000 --dim 512 $(ARGS)
	@$(BIN)/python -m benchmarks ingest --seconds 5 $(ARGS)
	@$(BIN)/python -m benchmarks publish --tasks 300 --labels 5 $(ARGS)
	@$(BIN)/python -m benchmarks embed --images 256 $(ARGS)
	@$(BIN)/python -m benchmarks train --images 256 --epochs 1 --seeds 1 $(ARGS)
	@$(BIN)/python -m benchmarks memory --pool 100000 $(ARGS)

.PHONY: compatibility
compatibility: $(BIN)/.ready  # the loop with each Label Studio that is said to work; ARGS="--versions 1.13.1,1.23.2 --keep /srv/ls"
	@$(BIN)/python -m tools.compatibility $(ARGS)

.PHONY: install-matrix
install-matrix: $(BIN)/.ready $(LABEL_STUDIO)/.ready  # the wheel in fresh environments; ARGS="--pythons 3.12 --installers uv"
	@$(BIN)/python -m tools.install_matrix $(ARGS)

reference: $(BIN)/.ready  # docs/reference/ and benchmarks/commands.md from the code; a test compares
	@$(BIN)/python -m tools.reference

fuzz: $(BIN)/.ready  # odd requests, images and label configs; ARGS="--minutes 10 --seed 3"
	@$(BIN)/python -m tests.fuzz $(ARGS)

audit: $(BIN)/.ready  # known vulnerabilities of what the locks name
	@$(PYTHON) .ci/audit

# uv does the installing: the one on the PATH, else one that is put into the environment itself.
$(BIN)/.runtime: requirements-runtime.lock pyproject.toml  # what the service needs
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo 'python3-venv is missing: apt-get install python3-venv'; exit 1; }
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@echo 'Installing the backend (once; PyTorch is large, this takes a minute or two) ...' >&2
	@$(call uv) pip install --quiet --python $(BIN)/python --no-deps -r requirements-runtime.lock
	@$(call uv) pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

$(BIN)/.ready: requirements.lock $(BIN)/.runtime  # and what its tests need
	@echo 'Installing what the tests need (once) ...' >&2
	@$(call uv) pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	@touch $@

$(LABEL_STUDIO)/.ready: label-studio.lock | $(BIN)/.runtime
	@mkdir -p $(dir $(LABEL_STUDIO))
	@test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	@echo 'Installing Label Studio in an environment of its own (once) ...' >&2
	@$(call uv) pip install --quiet --python $(LABEL_STUDIO)/bin/python --no-deps -r label-studio.lock
	@touch $@

uv = $$(command -v uv || echo $(CURDIR)/$(BIN)/uv)

# The locks carry no index addresses. [tool.uv] of pyproject.toml lifts the stale pins of label-studio-ml.
lock: $(BIN)/.ready  # the locks anew
	$(call uv) pip compile pyproject.toml --universal --extra dev --python-version 3.10 \
	  --no-emit-index-url --no-header --upgrade --quiet -o requirements.lock
	$(call uv) pip compile pyproject.toml --universal --extra postgres --extra s3 --extra label-studio-ml --python-version 3.10 \
	  -c requirements.lock --no-emit-index-url --no-header --no-annotate --quiet -o requirements-runtime.lock
	echo 'label-studio==1.23.2' | $(call uv) pip compile - --universal --python-version 3.10 \
	  --no-emit-index-url --no-header --upgrade --quiet -o label-studio.lock

clean:  # remove what was installed
	rm -rf .venv .label-studio .demo build dist *.egg-info
