PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready

.PHONY: demo test test-gpu gpu-check bench results docs clean

demo: $(READY)
	$(RUN) -m imbal_kernels demo $(ARGS)

# Of two workers with two threads each on two cores, one that spins while it waits takes the core that it waits for.
test: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

# On a machine with a GPU: the suite with what is installed there, and nothing skipped in silence.
test-gpu:
	$(PYTHON) setup.py -q build_ext --inplace
	IMBAL_REQUIRE_CUDA=1 $(PYTHON) -m pytest $(ARGS)

# Everything that a GPU can show, into OUT, with what is installed there; DRY=1 rehearses it without one.
gpu-check:
	$(PYTHON) -m bench.gpu_check $(or $(OUT),records) $(if $(DRY),--dry)

bench: $(READY)
	$(RUN) -m imbal_kernels bench $(ARGS)

# The README's figures and the plots of docs/, from the records in bench/results/.
results: $(READY)
	$(RUN) -m bench.results

docs: $(READY)
	$(RUN) -m bench.accuracy --write docs/accuracy.md

clean:
	rm -rf $(VENV) build .cache *.egg-info imbal_kernels/*.so

# torchvision is a test's peer: without its dependencies, which would pull a second torch.
$(READY): constraints.txt pyproject.toml setup.py $(wildcard csrc/*.h csrc/*/*)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt torch numpy setuptools ninja
	$(RUN) -m pip install -q -c constraints.txt --no-build-isolation -e ".[triton,sklearn,demo,test]"
	$(RUN) -m pip install -q -c constraints.txt --no-deps torchvision
	touch $@
