# Two commands: `make demo` runs a real search, `make test` runs everything that CI runs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test check format upgrade clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Archfront needs Python 3.11 or later: make PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	mkdir -p demo
	$(BIN)/nas search --store sqlite:///demo/archfront.db --name demo --exist-ok --report demo/report.html

test: check

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

upgrade: $(STAMP)
	$(BIN)/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	grep '^#' constraints.txt > $(STAMP)-versions
	$(BIN)/pip freeze --exclude-editable | grep -v '^torch==' >> $(STAMP)-versions
	mv $(STAMP)-versions constraints.txt
	touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info
