# make demo, make test, ... build .venv first. To use an interpreter that has the packages already: make test PYTHON=/path/to/python
BASE_PYTHON ?= python3
VENV ?= .venv
ENV ?= point_robot
RESULTS ?= results
DEMO_QUALITY ?= replay
DEMO_DIR ?= demo
DEMO = --env_type point_robot --recipe fast --output_dir $(DEMO_DIR)

ifeq ($(origin PYTHON), command line)
READY :=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/installed
endif

.PHONY: help setup demo test test-long test-slow lint format bench report reproduce datasets

help:
	@echo "make demo        the four scripts on Point-Robot, then the table (about a quarter of an hour)"
	@echo "make test        the test suite (some minutes)"
	@echo "make test-long   tests that make whole runs            make test-slow   all tests, those of minutes too"
	@echo "make lint        ruff                  make format      let ruff rewrite the files"
	@echo "make bench       speed of the hot paths, into benchmarks/results/"
	@echo "make report      tables and figures of RESULTS=results, into report/"
	@echo "make datasets    the data of Point-Robot and the MuJoCo families from the committed policies, with checksums"
	@echo "make reproduce   Meta-DT, its ablations and the compared methods on ENV=point_robot; ARGS=--dry_run prints the runs"

setup: $(READY)

$(VENV)/installed: requirements.txt requirements-dev.txt constraints.txt
	$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make setup BASE_PYTHON=python3.12")'
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements-dev.txt -c constraints.txt
	touch $@

demo: $(READY)
	$(PYTHON) train_data_collection.py $(DEMO)
	$(PYTHON) get_datasets.py $(DEMO) --data_type $(DEMO_QUALITY)
	$(PYTHON) train_context.py $(DEMO) --data_quality $(DEMO_QUALITY)
	$(PYTHON) train_meta_dt.py $(DEMO) --data_quality $(DEMO_QUALITY)
	$(PYTHON) -m tools.report --results $(DEMO_DIR)/results --output $(DEMO_DIR)/report

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -m "not slow and not long" $(ARGS)

test-long: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -m "long and not slow" $(ARGS)

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 $(ARGS)

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: $(READY)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: $(READY)
	$(PYTHON) -m benchmarks $(ARGS)

report: $(READY)
	$(PYTHON) -m tools.report --results $(RESULTS) --output report $(ARGS)

reproduce: $(READY)
	$(PYTHON) -m tools.reproduce --env_type $(ENV) $(ARGS)

datasets: $(READY)
	$(PYTHON) -m tools.make_datasets $(ARGS)
