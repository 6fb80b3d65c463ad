# Two commands, and nothing to install before them but Python >= 3.11 and make:
#   make demo    install into .venv, send a photograph through the embedded autoencoder, and draw sixteen emoji
#   make test    install what development needs and run every check
#   make docs    build the documentation as a site, into site/
# `make embedded` trains the embedded autoencoder again and replaces it (Debian 12 for its photographs; over an hour).
# `make emoji` trains the embedded diffusion model again and replaces it (Debian 12 for its emoji; hours, minutes on a GPU).
# PYTHON=python3.12 picks another Python for a new .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt

.PHONY: demo test docs embedded emoji

EMBEDDED := dc-ae-f32c32-tiny-1.0
EMOJI := $(EMBEDDED)-usit-emoji-128px

demo: $(VENV)/installed
	$(BIN)/dcae reconstruct examples/test_images/astronaut.png -o demo
	@echo "The images are in $(CURDIR)/demo: astronaut.recon.png, and astronaut.compare.png with the error beside it."
ifneq ($(wildcard dcae_core/embedded/$(EMOJI)),)
	$(BIN)/dcae sample -o demo/emoji
	@echo "In $(CURDIR)/demo/emoji are sixteen samples of the embedded diffusion model, and all in one: grid.png."
endif

test: $(VENV)/installed-for-development
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

docs: $(VENV)/installed
	$(UV_INSTALL) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "The first page is $(CURDIR)/site/index.html."

embedded: $(VENV)/installed
	$(BIN)/python scripts/gather_photographs.py runs/photographs
	$(BIN)/dcae train-ae tiny --phase full --set data.sources.0.path=runs/photographs/640 \
	  --set data.sources.1.path=runs/photographs/1200
	$(BIN)/dcae convert runs/tiny/autoencoder --to dcae --dtype fp16 --name $(EMBEDDED) -o runs/$(EMBEDDED)
	rm -rf dcae_core/embedded/$(EMBEDDED)
	mv runs/$(EMBEDDED) dcae_core/embedded/

# Stopped anywhere, it goes on where it was: the licence is the last file that the script writes.
emoji: runs/emoji/LICENCE.txt
	$(BIN)/dcae encode-dataset --images runs/emoji/train --out runs/emoji128-latents --resolution 128
	$(BIN)/dcae train-diffusion emoji
	rm -rf runs/$(EMOJI)
	$(BIN)/dcae convert runs/emoji-diffusion --to dcae --dtype fp16 -o runs/$(EMOJI)
	rm -rf dcae_core/embedded/$(EMOJI)
	mv runs/$(EMOJI) dcae_core/embedded/

runs/emoji/LICENCE.txt: | $(VENV)/installed
	$(BIN)/python scripts/gather_emoji.py runs/emoji

# pip installs torch and torchvision, in one call because they must fit, so that pip's own settings choose their build
# (CPU, CUDA, ...); uv the rest, because it is fast.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dcae needs Python 3.11 or newer; $(PYTHON) is not. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the rest into $(VENV) (some minutes, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv torch torchvision
	$(UV_INSTALL) --compile-bytecode --editable .
	@touch $@

$(VENV)/installed-for-development: $(VENV)/installed
	$(UV_INSTALL) --compile-bytecode --editable '.[dev]'
	@touch $@
