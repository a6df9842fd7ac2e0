# `make help` lists the targets. Each does the set-up it needs; that takes a second when nothing changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ENV := source scripts/env.bash
# A test that needs ROS fails here instead of being skipped: the set-up has provided ROS.
PYTEST := OPENVLA_ROS_REQUIRE_ROS=1 python -m pytest
# Tests over DDS run one at a time, because they look at when things happen; the others share the cores.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses auto --maxprocesses 4 --dist loadfile

export BAG CHECKPOINT UNNORM_KEY INSTRUCTION ROBOT SEED DURATION

.PHONY: help setup demo test test-all faults load lint format build clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup:  ## everything that is needed, into .venv/ and install/ (see scripts/setup.bash)
	@scripts/setup.bash

demo: setup  ## an arm follows instructions, live; INSTRUCTION=, CHECKPOINT=, ROBOT=, SEED=, BAG=, UNNORM_KEY=, DURATION= (s)
	@$(ENV); openvla-ros demo \
		$${INSTRUCTION:+--instruction "$$INSTRUCTION"} $${CHECKPOINT:+--checkpoint "$$CHECKPOINT"} \
		$${ROBOT:+--robot "$$ROBOT"} $${SEED:+--seed "$$SEED"} \
		$${BAG:+--bag "$$BAG"} $${DURATION:+--duration "$$DURATION"}

test: setup  ## the fast tier of tests, which CI runs
	@$(ENV); $(SIDE_BY_SIDE) -m "not slow and not gpu and not ros"
	@$(ENV); $(PYTEST) -m "not slow and not gpu and ros"

test-all: setup  ## every test, the slow tier included
	@$(ENV); $(SIDE_BY_SIDE) -m "not ros"
	@$(ENV); $(PYTEST) -m ros

faults: setup  ## kills, hangs and restarts every process 100 times; numbers into docs/benchmarks/faults.md
	@$(ENV); python test/fault_run.py --rounds 100 --seed 0 --document docs/benchmarks/faults.md

load: setup  ## 30 Hz camera and 50 Hz twist for 10 minutes, twice; numbers into docs/benchmarks/faults.md
	@$(ENV); python test/load_run.py --duration 600 --document docs/benchmarks/faults.md

lint: setup  ## ruff and mypy
	@$(ENV); ruff check; ruff format --check; mypy

format: setup  ## let ruff rewrite the sources
	@$(ENV); ruff check --fix; ruff format

build: setup  ## colcon build, whether or not something changed
	@$(ENV); colcon build --symlink-install --packages-select openvla_ros

clean:  ## remove what was built; .venv stays
	rm -rf build install log demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
