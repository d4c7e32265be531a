# Everything a person or CI calls. The environment is made once, in .venv, and again when its requirements change.
#
#   PYTHON=python3.12            the Python that makes the environment (3.11 or newer)
#   TORCH_INDEX=URL              take torch from this package index, e.g. PyTorch's own for CPUs (much smaller)
#   PIP_INDEX_URL=URL            take everything from this package index
#   FILES="a.fits b.csv"         observations of your own for `make demo`
#   ALBIREO_TEST_DATA=FOLDER     real survey files for `make real`
#   STARS=FOLDER                 where `make stars` puts what it fetches, and `make science` finds it
#   MINI=FOLDER                  where `make mini` keeps the skies it simulates, its state, and the checkpoint it makes
#   JOBS=1                       processes that run tests; default: one for each core
#   FUZZ_SECONDS=300             CPU time for each reader in `make fuzz` (default: 60)
#   BENCH="--case image"         what `make bench` compares with the released package (default: everything, for hours)

PYTHON ?= python3
TORCH_INDEX ?=
FILES ?=
BENCH ?= --all
FUZZ_SECONDS ?= 60
JOBS ?= auto
STARS ?= .science/stars
MINI ?= .mini
ALBIREO_TEST_DATA ?= $(abspath ../shared/data)
export ALBIREO_TEST_DATA

BIN := .venv/bin
STAMP := .venv/.installed
FOLDERS := observations tokenizers models index service

.DEFAULT_GOAL := help
.PHONY: help demo test real parity slow fuzz lint types fix bench stars science mini docs protos

help:
	@echo "make demo    embed and search the sample observations; FILES=\"...\" adds yours; writes demo.png"
	@echo "make test    the tests"
	@echo "make real    the tests on real survey files (ALBIREO_TEST_DATA=$(ALBIREO_TEST_DATA))"
	@echo "make parity  tokens, states and logits beside polymathic-aion: every token key, 1,000 objects each, networks of"
	@echo "             AION-1's size; about half an hour on two cores"
	@echo "make slow    the other tests that take minutes: a demo from nothing, every kind of question of make science"
	@echo "make fuzz    every reader on changed files: typed errors only, memory and time bounded; FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make lint    formatter and linter, changing nothing; make fix applies them"
	@echo "make types   the type checker"
	@echo "make bench   what one object costs here, and all that beside the released package; hours, or BENCH=\"...\""
	@echo "make stars   fetch the real stars that heads are fitted to (104 MB) into STARS=$(STARS)"
	@echo "make science what the checkpoint is good for, on real and simulated objects, into docs/science.md; hours"
	@echo "make mini    albireo-mini and its heads anew, from simulated and real objects, into MINI=$(MINI); hours"
	@echo "make docs    write the generated pages of docs/ again"
	@echo "make protos  write the Python code of the messages under service/protos again"
	@echo "Next: make demo"

$(STAMP): pyproject.toml constraints.txt
	@echo "== environment: .venv (a few minutes the first time: torch is large)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Albireo needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "No environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install --index-url "$(TORCH_INDEX)" -c constraints.txt torch; fi
	@$(BIN)/python -m pip install -c constraints.txt -e '.[cpu,train,dev]' || \
		{ echo "The packages could not be installed. With the network back, call make again: it goes on."; exit 1; }
	@touch $@

demo: $(STAMP)
	@echo "== demo: files -> tokens -> embeddings -> neighbours"
	@$(BIN)/albireo demo $(FILES)

test: $(STAMP)
	@echo "== tests"
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile
	@echo "All tests passed. Next: make demo, or make real for the tests on real survey files."

real: $(STAMP)
	@echo "== tests on real survey files"
	@[ -d "$(ALBIREO_TEST_DATA)" ] || \
		{ echo "There is no $(ALBIREO_TEST_DATA). Name the folder: make real ALBIREO_TEST_DATA=FOLDER"; exit 1; }
	@$(BIN)/python -m pytest -m "real and not slow"
	@echo "Real files are read as they should be. Next: make demo FILES=\"...\" with files of your own."

parity: $(STAMP)
	@echo "== parity with polymathic-aion (about half an hour on two cores)"
	@$(BIN)/python -m pytest tests/parity -v -m "slow or not slow"
	@echo "The numbers are those of polymathic-aion. Next: make bench for what they cost."

slow: $(STAMP)
	@echo "== slow tests"
	@$(BIN)/python -m pytest -m slow --ignore tests/parity
	@echo "All slow tests passed. Next: make parity"

fuzz: $(STAMP)
	@echo "== fuzz: every reader, $(FUZZ_SECONDS) s of CPU time each"
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)
	@echo "Nothing but typed errors, in bounded memory and time. Next: make fuzz FUZZ_SECONDS=300"

lint: $(STAMP)
	@echo "== lint"
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . || { echo "Next: make fix, then what is left by hand."; exit 1; }
	@echo "Format and lint are clean. Next: make types"

types: $(STAMP)
	@echo "== types"
	@mkdir -p .typing/albireo
	@for folder in $(FOLDERS); do ln -sfn ../../$$folder .typing/albireo/$$folder; done
	@MYPYPATH=.typing $(BIN)/mypy $(FOLDERS:%=-p albireo.%)
	@echo "Types are sound. Next: make test"

fix: $(STAMP)
	@echo "== fix"
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@echo "What could be mended is. Next: make lint types test"

bench: $(STAMP)
	@echo "== bench"
	@$(BIN)/python -m benchmarks.objects
	@$(BIN)/python -m benchmarks.aion $(BENCH) --work .bench --out .bench/results.jsonl
	@$(BIN)/python -m benchmarks.report .bench/results.jsonl
	@echo "Measured. Next: python -m benchmarks.report .bench/results.jsonl --page docs/benchmarks.md"

stars: $(STAMP)
	@echo "== real stars (104 MB)"
	@$(BIN)/python -m benchmarks.star_sets "$(STARS)"
	@echo "Real stars are in $(STARS). Next: make science"

science: $(STAMP)
	@echo "== science: goes on where it was stopped"
	@[ -d "$(ALBIREO_TEST_DATA)" ] || \
		{ echo "There is no $(ALBIREO_TEST_DATA). Name the folder: make science ALBIREO_TEST_DATA=FOLDER"; exit 1; }
	@ALBIREO_STAR_DATA="$(STARS)" $(BIN)/python -m benchmarks.science --out docs/science.md
	@echo "Measured. Next: git diff docs/science.md"

# Every stage goes on where it was stopped. Numbers behind folders are their shares of the steps.
mini: $(STAMP)
	@echo "== albireo-mini: sky, codecs, tokens, masked modelling, heads"
	@nice -n 19 $(BIN)/albireo simulate $(MINI)/sky --objects 14000 --seed 20261126 --shard-size 1000 --workers 2
	@nice -n 19 $(BIN)/albireo simulate $(MINI)/sky-of-heads --objects 4000 --seed 20261127 --shard-size 1000 --workers 2
	@nice -n 19 $(BIN)/albireo simulate $(MINI)/photometry --photometry --objects 50000 --seed 20261129 --shard-size 5000 --no-page --workers 2
	@nice -n 19 $(BIN)/python -m albireo.models.spectrum_pairs $(MINI)/pairs --objects 8000 --workers 2
	@[ -d $(MINI)/real ] || ALBIREO_STAR_DATA="$(STARS)" $(BIN)/python -m benchmarks.real_sky $(MINI)/real
	@nice -n 19 $(BIN)/python -m albireo.models.pretrain --state $(MINI)/state --out $(MINI)/albireo-mini --pairs $(MINI)/pairs \
		--codecs-from models/albireo-mini --data $(MINI)/sky=0.42 --data $(MINI)/photometry=0.2 --data $(MINI)/real/gaia_xp_wheel=0.2 \
		--data $(MINI)/real/photoz_kcorrect_gst=0.08 --data $(MINI)/real/photoz_zcosmos=0.05 --data $(MINI)/real/photoz_vvds=0.05
	@ALBIREO_STAR_DATA="$(STARS)" nice -n 19 $(BIN)/python -m benchmarks.shipped_heads $(MINI)/albireo-mini \
		--sky $(MINI)/sky-of-heads --state $(MINI)/states
	@$(BIN)/python -m albireo.service.recipe $(MINI)/albireo-mini
	@echo "Made. Next: python -m benchmarks.science --checkpoint $(MINI)/albireo-mini --out science.md"

docs: $(STAMP)
	@echo "== docs"
	@$(BIN)/python docs/generate.py
	@echo "Generated pages are written. Next: git diff docs"

protos: $(STAMP)
	@echo "== protos"
	@$(BIN)/python -m tests.service.make_protos
	@echo "Generated code is written. Next: git diff service/protos"
