# make demo · make test · make test-full · make check · make native · make sanitize · make clean
#
# A fresh machine needs Python 3.11 or newer, nothing else. `uv` is used when it is on the PATH (UV= turns that off).

PYTHON  ?= python3
WORKERS ?= 2
UV      ?= $(shell command -v uv 2>/dev/null)

BIN   := .venv/bin
# Named after the content of the two files: what is installed is installed again only when one of them changes.
KEY   := $(shell cat pyproject.toml constraints.txt | cksum | tr -s ' ' '-')
PRUNE := .venv/.billhook-prune-$(KEY)
DEV   := .venv/.billhook-dev-$(KEY)
FULL  := .venv/.billhook-full-$(KEY)

# More threads than cores make small tensors slow; the tests run in $(WORKERS) processes instead.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

ifeq ($(UV),)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
else
# uv does not read pip's variable for a folder of wheels.
INSTALL = $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") $(UV) pip install --quiet --python $(BIN)/python
endif

# What is installed already is enough when it holds more than what is asked for.
TOOLS := $(if $(wildcard $(FULL)),$(FULL),$(DEV))

.PHONY: demo test test-full check format native sanitize clean

demo: $(if $(wildcard $(DEV) $(FULL)),$(TOOLS),$(PRUNE))
	$(BIN)/billhook demo

test: $(TOOLS) native
	$(PYTEST) -m "not slow"

test-full: $(FULL) native
	$(PYTEST)

check: $(TOOLS)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(TOOLS)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The runtime's library, in place; nothing is done when it is up to date, or where there is no C++ compiler.
native: | $(BIN)/python
	$(BIN)/python native/build.py

# AddressSanitizer and UndefinedBehaviorSanitizer, then ThreadSanitizer: some minutes.
sanitize: $(TOOLS) native
	$(BIN)/python native/sanitize.py

clean:
	rm -f src/billhook/runtime/_native.so
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed (install Python 3.11 or newer, or: make PYTHON=/path/to/python3.12 ...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version 2>&1) is too old: billhook needs 3.11 or newer (make PYTHON=python3.12 ...)" >&2; exit 1; }
ifeq ($(UV),)
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "error: $(PYTHON) -m venv failed (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
else
	@$(UV) venv --quiet --no-python-downloads --python $(PYTHON) .venv
endif

$(PRUNE): | $(BIN)/python
	@echo "installing billhook and its dependencies into .venv"
	@$(INSTALL) --constraint constraints.txt --editable ".[prune]"
	@rm -f .venv/.billhook-* && touch $@

$(DEV): | $(BIN)/python
	@echo "installing billhook, its dependencies and the tools of its tests into .venv"
	@$(INSTALL) --constraint constraints.txt --editable ".[prune,dev]"
	@rm -f .venv/.billhook-* && touch $@

$(FULL): | $(BIN)/python
	@echo "installing billhook, its dependencies, the tools of its tests, torchvision and timm into .venv"
	@$(INSTALL) --constraint constraints.txt --editable ".[prune,dev,torchvision,timm,bench]"
	@rm -f .venv/.billhook-* && touch $@
