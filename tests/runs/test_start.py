"""Help, configuration and every mistake that needs no model are answered without importing torch: in half a second.

One process runs all of the command lines, and tells which libraries it has imported by then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align import cli
from align.cli import COMMANDS
from align.runs import exit_codes

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "trl", "deepspeed", "matplotlib", "scipy")
ANSWERED = [
    [],
    ["--help"],
    *([name, "--help"] for name in COMMANDS),
    *([name, "--cfg", "job"] for name in COMMANDS),
]
TRAIN = ["train", "data.path=rows.jsonl"]
# Command line → part of the sentence that it ends in.
REFUSED: list[tuple[list[str], str]] = [
    (["trian"], "unknown command 'trian'"),
    ([*TRAIN, "nokey=1"], "nokey is no key of this command"),
    ([*TRAIN, "method=lgoo"], "method=lgoo is not known"),
    ([*TRAIN, "experiment=none_such"], "experiment=none_such is not known"),
    ([*TRAIN, "model.dtype=float8"], "model.dtype=float8 is not known"),
    ([*TRAIN, "model.attention=flash9"], "model.attention=flash9 is not known"),
    ([*TRAIN, "model.rope.type=spiral"], "model.rope.type=spiral is not known"),
    ([*TRAIN, "model/rope=spiral"], "model/rope=spiral is not known"),
    ([*TRAIN, "model/rope=truncated", "model.rope.table.length=0"], "model.rope.table.length=0 is no number"),
    (
        [*TRAIN, "model/rope=factors", "model.rope.table.path=none.json"],
        "none.json is no file that can be read",
    ),
    (
        [*TRAIN, "model/rope=clex", "model.rope.table.path=none"],
        "is no safetensors file and no folder with one",
    ),
    (
        [*TRAIN, "model.rope.type=table", "model.rope.table={_target_: os.system}"],
        "model.rope.table._target_=os.system is refused",
    ),
    (
        [*TRAIN, "model/query_scale=log_length", "model.query_scale.window=1"],
        "model.query_scale.window=1 is too small",
    ),
    ([*TRAIN, "model/query_scale=constant"], "model.query_scale.value is not set"),
    ([*TRAIN, "model.query_scale={_target_: os.system}"], "model.query_scale._target_=os.system is refused"),
    ([*TRAIN, "model.path=no/such/folder"], "model.path=no/such/folder is no model folder"),
    ([*TRAIN, "model.lora.modules_to_save=[norm]"], "model.lora.r=0 trains all parameters"),
    ([*TRAIN, "adapter=soft_prompt", "adapter.tokens=0"], "adapter.tokens=0 is no prompt"),
    ([*TRAIN, "adapter=soft_prompt", "adapter.trains=base"], "name the run that did, adapter.path=FOLDER"),
    ([*TRAIN, "adapter=soft_prompt", "adapter.path=none"], "adapter.path=none holds no soft prompt"),
    ([*TRAIN, "method.loss.beta=much"], "method.loss.beta=much has to be a number"),
    ([*TRAIN, "+method.loss.temper=1"], "method.loss.temper is unknown"),
    ([*TRAIN, "method.loss._target_=os.system"], "method.loss._target_=os.system is refused"),
    ([*TRAIN, "method.needs.reference=sometimes"], "method.needs.reference=sometimes is unknown"),
    ([*TRAIN, "+method.needs.columns={score: row}"], "method.needs.columns.score=row is unknown"),
    ([*TRAIN, "method=ld_dpo", "method.needs.reference=short"], "method.needs.fronts cuts whole answers"),
    ([*TRAIN, "method=dpo", "token_weights=rank"], "method=dpo does not read weights of tokens"),
    (
        [*TRAIN, "method=weighted_sft", "token_weights=rank", "token_weights.alpha=-1"],
        "token_weights.alpha=-1",
    ),
    ([*TRAIN, "data/order=buckets", "data.order.steps=0"], "data.order.steps=0 must be a number of steps"),
    ([*TRAIN, "data.order.balance=rows"], "data.order.balance=rows is not known"),
    (
        [*TRAIN, "data/order=grow", "data.mix=[{path: rows.jsonl, share: 0.5}]", "trainer.max_steps=5"],
        "data.order=grow reads short rows first",
    ),
    ([*TRAIN, "+trainer.train_sampling_strategy=batch_rebalance"], "use data/order=buckets, or"),
    (
        [*TRAIN, "trainer.learning_rate=fast"],
        "trainer.learning_rate=fast has the wrong type: it takes a number",
    ),
    ([*TRAIN, "+trainer.learning_rat=1"], "did you mean learning_rate?"),
    ([*TRAIN, "+trainer.seed=1"], "trainer.seed is set by this toolkit: use seed instead"),
    ([*TRAIN, "trainer.eval_strategy=often"], "trainer.eval_strategy=often is not known"),
    ([*TRAIN, "memory.checkpointing=some"], "memory.checkpointing=some is not known"),
    ([*TRAIN, "memory.choose=best"], "memory.choose=best is not known"),
    ([*TRAIN, "memory.mlp_chunk=0"], "memory.mlp_chunk=0 must be a number of tokens"),
    ([*TRAIN, "parallel.kind=ring"], "parallel.kind=ring is not known"),
    ([*TRAIN, "parallel.degree=0"], "parallel.degree=0 must be a number of processes"),
    ([*TRAIN, "reference.source=adapter_off", "method=dpo"], "needs an adapter to switch off"),
    ([*TRAIN, "reference.sharding=half"], "reference.sharding=half is not known"),
    ([*TRAIN, "data.cut=left"], "data.cut=left"),
    ([*TRAIN, "data.thinking=off"], "data.thinking=off is not known"),
    ([*TRAIN, "data.date=tomorrow"], "data.date=tomorrow is no date"),
    ([*TRAIN, "data.chat_template=none.jinja"], "data.chat_template=none.jinja cannot be read"),
    ([*TRAIN, "data.template_kwargs={messages: []}"], "data.template_kwargs: messages cannot be set"),
    ([*TRAIN, "data.bad_rows=skip"], "data.bad_rows=skip is not known: use stop, drop"),
    ([*TRAIN, "data.bad_rows_limit=-1"], "data.bad_rows_limit=-1.0 is negative"),
    (
        [*TRAIN, "data.columns={promt: question}"],
        "data.columns.promt is no column of a layout (did you mean prompt?)",
    ),
    ([*TRAIN, "data.columns={prompt: q, chosen: q}"], "data.columns gives the rows' column q two names"),
    ([*TRAIN, "data.eval_path=row"], "data.eval_path=row does not exist (did you mean rows.jsonl?)"),
    (["inspect", "data.path=rows.jsonl", "seed=-1"], "seed=-1 is no seed"),
    ([*TRAIN, "positions.mode=random"], "positions.mode is no key any more: write positions=NAME"),
    ([*TRAIN, "positions=skip", "positions.chunks=1"], "positions.chunks=1 leaves nothing to skip"),
    (
        [*TRAIN, "method=dpo", "positions=random", "reference.cache=cache"],
        "positions.redraw=epoch gives rows other positions in each epoch, so that reference.cache holds none",
    ),
    ([*TRAIN, "+suite@suites.n=retrieval", "suites.n.samples=0"], "samples=0 is too small"),
    ([*TRAIN, "trainer.lr_scheduler_type=cosin"], "did you mean cosine?"),
    ([*TRAIN, "trainer.optim=adamv_torch"], "did you mean adamw_torch?"),
    ([*TRAIN, "trainer.optim=lomo"], "trainer.optim=lomo needs the package lomo-optim"),
    ([*TRAIN, "trainer.report_to=wandbb"], "did you mean wandb?"),
    ([*TRAIN, "+trainer.deepspeed=none.json"], "trainer.deepspeed=none.json is no file"),
    ([*TRAIN, "data.eval_path=none.jsonl"], "data.eval_path=none.jsonl does not exist"),
    ([*TRAIN, "data.mix=[{path: none.jsonl, ratio: 1}]"], "data.mix[0].path=none.jsonl does not exist"),
    ([*TRAIN, "resume=outputs/none"], "resume=outputs/none is no folder"),
    ([*TRAIN, "launch.config=none.yaml"], "launch.config=none.yaml is no file"),
    ([*TRAIN, "launch.processes=0"], "launch.processes=0"),
    (["train"], "data.path is not set"),
    (["train", "data.path=none.jsonl"], "data.path=none.jsonl does not exist"),
    (["train", "data.path=notes.pdf"], "data.path=notes.pdf has an unknown ending"),
    (
        [*TRAIN, "data.mix=[{path: rows.jsonl}]"],
        "takes either a ratio, rows for each training row of data.path, or a",
    ),
    ([*TRAIN, "data.mix=[{path: rows.jsonl, share: 1.5}]"], "data.mix[0].share=1.5 must lie between 0 and 1"),
    ([*TRAIN, "+trainer.neftune_noise_alpha=5"], "trainer.neftune_noise_alpha is not taken here"),
    (["inspect", "data.path=none.jsonl"], "data.path=none.jsonl does not exist"),
    (["inspect", "data.path=rows.jsonl", "rows=-1"], "rows=-1 must be a whole number"),
    (["evaluate", "suite=retrieval", "suite.samples=0"], "suite.samples=0 is too small"),
    (["evaluate", "suite=longbench"], "suite.paths"),
    (["evaluate", "suite=preference"], "data.path is not set"),
    (["evaluate", "suite=preference", "data.path=none.jsonl"], "data.path=none.jsonl does not exist"),
    (["evaluate", "suite=preference", "data.path=rows.jsonl", "method=lgoo"], "method=lgoo is not known"),
    (["evaluate", "generator.device=tpu"], "generator.device=tpu is not known"),
    (["synthesize", "pipeline.documents=none.txt"], "pipeline.documents=none.txt does not exist"),
    (["synthesize", "pipeline=longpo", "pipeline.target_length=0"], "leaves no context"),
    (["synthesize", "pipeline=utk", "pipeline.share=2"], "pipeline.share=2 must lie in [0, 1]"),
    (["synthesize", "pipeline=buckets", "pipeline.max_power=7"], "pipeline.max_power=7 is too small: give 8"),
    (["synthesize", "generator=openai", "generator.concurrency=0"], "generator.concurrency=0"),
    (["synthesize", "deduplicate=fuzzy"], "deduplicate=fuzzy"),
    (["rounds"], "lengths"),
    (["rounds", "lengths=[64]", "data.paths=[none.jsonl]"], "data.paths[0]=none.jsonl does not exist"),
    (["evaluate", "suite.nokey=1"], "suite.nokey is no key of this command: `align"),
    (["verify", "tolerance=0"], "tolerance=0 must be a positive number"),
    (["verify", "model.attention=flash2"], "which model.attention=flash2 does not take"),
    (["plan", "wrapper=fsdp9"], "wrapper=fsdp9 is not known"),
    (["plan", "gpus.count=0"], "gpus.count=0 is too small"),
    (["plan", "gpus=cpu", "wrapper=zero3_offload"], "wrapper=zero3_offload needs GPUs, and gpus.device=cpu"),
    (
        ["plan", "model.quantization=nf4", "model.lora.r=8"],
        "model.quantization=nf4 does not train under zero3",
    ),
    (["plan", "trainer.optim=lomo"], "trainer.optim=lomo: what it keeps of each weight is not known here"),
    (["report", "path=none"], "path=none is no folder"),
    (["report", "path=.", "order=sideways"], "order=sideways is not known"),
    (["export", "path=none", "output=new"], "path=none is no folder"),
    (["export", "path=.", "output=new"], "is no run of `align train`"),
    (["merge", "models=[none/at/all,rows.jsonl]", "output=new"], "models[0]=none/at/all is no model folder"),
    (["merge", "models=[a/b,c/d]", "models.y=1", "output=new"], "'y' is no entry of a list"),
    (["merge", "models=[mixed]", "output=new"], "models[0]=mixed is a folder without config.json"),
    (
        ["merge", "models=[a/b,c/d]", "output=new", "combine=ties"],
        "name the model that it started from, base=",
    ),
    (["merge", "models=[a/b]", "output=new"], "models has 1 and combine=average takes 2 or more"),
    (
        ["merge", "models=[a/b,c/d]", "output=new", "combine.weights=[1]"],
        "combine.weights=[1] has 1 for 2 models",
    ),
    (["plan", "model.path=no/such/folder"], "model.path=no/such/folder is no model folder"),
    (["train", "data.pth=rows.jsonl"], "data.pth is no key of this command (did you mean data.path?)"),
    (["inspect", "+data.pth=rows.jsonl"], "data.pth is unknown (did you mean path?)"),
    ([*TRAIN, "+model.lora.rank=8"], "model.lora.rank is unknown"),
    (
        [*TRAIN, "trainer.bf16_full_eval=true"],
        "+trainer.bf16_full_eval=VALUE gives a keyword that is not listed",
    ),
    ([*TRAIN, "output=notes.txt"], "output: notes.txt cannot be made (a file of that name is in the way)"),
    ([*TRAIN, "=3"], "=3 is no setting: write KEY=VALUE"),
    (["rounds", "lengths=long"], "it takes a list of whole numbers, as in 'lengths=[1]'."),
    (["evaluate", "data.path=rows.jsonl"], "Retrieval measures no rows of data.path"),
    (["evaluate", "suite=preference", "data.path=rows.jsonl"], "name it, reference.model="),
    (["evaluate", "suite=short", "suite.pairs=rows.jsonl"], "name it, reference.model="),
    (["plan", "data.path=none.jsonl"], "data.path=none.jsonl does not exist"),
    (["export", "path=.", "output=new", "dtype=int3"], "dtype=int3 is not known"),
    (
        ["evaluate", "suite.lengths=512"],
        "suite.lengths=512 has the wrong type: it takes a list of whole numbers",
    ),
    (["evaluate", "suite.depths=[a]"], "suite.depths=[a] has the wrong type: it takes a list of numbers"),
    (["evaluate", "suite=perplexity", "suite.memory=null"], "suite.memory is no memory: choose one by its"),
    (
        ["evaluate", "suite=perplexity", "suite/memory=temp_lora", "suite.memory.steps=0"],
        "suite.memory.steps=0 is too small: give 1 or more.",
    ),
    (
        ["synthesize", "generator/memory=temp_lora", "generator.memory.r=a"],
        "generator.memory.r=a has to be a number",
    ),
    (["evaluate", "suite=perplexity", "suite.max_documents=0"], "suite.max_documents=0 is too small"),
    (["evaluate", "suite=questions", "suite.path=rows.jsonl", "suite.limit=0"], "suite.limit=0 is too small"),
    (["synthesize", "near_duplicate=abc"], "it takes a number, as in near_duplicate=0.8."),
    (["verify", "seed=abc"], "seed=abc is no seed"),
    ([*TRAIN, "seed=-1"], "seed=-1 is no seed: give a whole number from 0 to 4294967295."),
    (
        [*TRAIN, "experiment=logo_paper", "method=dpo"],
        "sets method.loss.beta, method.loss.gamma, method.loss.sft",
    ),
    ([*TRAIN, "trainer.logging_nan_inf_filter=true"], "trainer.logging_nan_inf_filter"),
    ([*TRAIN, "data.template=a=b"], """around the word: "data.template='a=b'"."""),
    ([*TRAIN, "data.template=你好（x）"], """around the word: "data.template='你好（x）'"."""),
    ([*TRAIN, "data.template=a#b"], """around the word: "data.template='a#b'"."""),
    (["train", "data.path=my rows(1).jsonl"], """around the word: "data.path='my rows(1).jsonl'"."""),
    ([*TRAIN, 'data.system=say "hi" (x)'], r"""'data.system="say \"hi\" (x)"'."""),
    ([*TRAIN, "data.mix=[{path: a(1).jsonl, ratio: 1}]"], "data.mix='[{path: a(1).jsonl, ratio: 1}]'"),
    (["plan", "model.lora.r=9223372036854775808"], "adapter.r=9223372036854775808 is no rank"),
    (
        [*TRAIN, "data.bad_rows_limit=1e400"],
        "data.bad_rows_limit=inf is neither a share below 1 nor a whole number",
    ),
    (
        [*TRAIN, "data.mix=[{path: rows.jsonl, ratio: inf}]"],
        "data.mix[0].ratio=inf must be a number above 0",
    ),
    ([*TRAIN, "adapter=lora", "adapter.r=0"], "adapter.r=0 is no rank"),
    ([*TRAIN, "adapter=lora", "adapter.r=few"], "adapter.r=few has to be a number"),
    (
        [*TRAIN, "adapter=lora", "+adapter.rank=4"],
        "adapter.rank is unknown; align.adapters.lora.Lora takes r, alpha",
    ),
    ([*TRAIN, "adapter=lora", "adapter.init=eva"], "adapter.init=eva is not known: use zero, "),
    ([*TRAIN, "adapter=lora", "+adapter.options.use_dorra=true"], "(did you mean use_dora?)"),
    ([*TRAIN, "adapter=lora", "model.lora.r=4"], "model.lora is another name of adapter=lora"),
    ([*TRAIN, "adapter=lroa"], "adapter=lroa is not known"),
    ([*TRAIN, "+adapter.r=4"], "adapter.r is set, but adapter=none trains all parameters"),
    ([*TRAIN, "adapter=library", "adapter.type=LILY"], "adapter.type=LILY is refused: it averages"),
    ([*TRAIN, "adapter=library", "adapter.type=LORRA"], "adapter.type=LORRA is not known"),
    (
        [*TRAIN, "adapter=half", "adapter.scope=third"],
        "adapter.scope=third is not known: use category, layer, model",
    ),
    ([*TRAIN, "adapter=region", "adapter.layers=[0.5,0.25]"], "is no band of layers"),
    (["verify", "adapter=half", "model.quantization=nf4"], "does not go with adapter=half"),
    ([*TRAIN, "model.lora.r=-1"], "adapter.r=-1 is no rank"),
    ([*TRAIN, "model.lora.r=4", "model.lora.dropout=1"], "adapter.dropout=1.0 is no probability"),
    ([*TRAIN, "model.lora.r=4", "model.lora.alpha=0"], "adapter.alpha=0 would switch the adapter off"),
    ([*TRAIN, "data.limit"], "data.limit is no setting: write KEY=VALUE"),
    ([*TRAIN, "model.path=adapter"], "holds a LoRA adapter and no model: `align export path=RUN"),
    ([*TRAIN, "model.lora.r=4", "model.lora.target_modules=all-linear"], "it takes a list of texts"),
    (
        ["inspect", "data.path=rows.jsonl", "findings=rows.jsonl"],
        "findings=rows.jsonl is a file that this command reads",
    ),
    (
        ["inspect", "data.path=rows.jsonl", "findings=notes.txt"],
        "findings: notes.txt is there and was not written by this",
    ),
    (["inspect", "data.path=rows.jsonl", "findings=mixed"], "findings=mixed is a folder: name a file"),
    (["inspect", "data.path=rows.jsonl", "findings="], "findings= names no file"),
    (["plan", "json=notes.txt"], "json: notes.txt is there and was not written by this command"),
    (["plan", "json=mixed"], "json=mixed is a folder: name a file"),
    (["plan", "json=notes.txt/plan.json"], "notes.txt is a file, not a folder"),
    (["report", "path=reported"], "report.html is there and was not written by this command"),
    ([*TRAIN, "output=mixed"], "output=mixed is there and holds no run of this command, but notes.md"),
    ([*TRAIN, "output=."], "output=. is there and holds no run of this command, but "),
    ([*TRAIN, "output=/"], "output=/ is there and holds no run of this command, but "),
    ([*TRAIN, "output="], "output= names no folder"),
    (["synthesize", "output=mixed"], "output=mixed is there and holds no run of this command"),
    (["evaluate", "output=mixed"], "output=mixed is there and holds no run of this command"),
    (["evaluate", "output="], "output= names no folder"),
    (["rounds", "lengths=[64]", "output=mixed"], "output=mixed is there and holds no run of this command"),
    ([*TRAIN, "trainer.learning_rate=-1"], "trainer.learning_rate=-1 cannot be used: give 0 or more."),
    ([*TRAIN, "trainer.learning_rate=nan"], "trainer.learning_rate=nan cannot be used"),
    ([*TRAIN, "trainer.per_device_train_batch_size=0"], "give a whole number from 1 on"),
    ([*TRAIN, "trainer.gradient_accumulation_steps=0"], "give a whole number from 1 on"),
    ([*TRAIN, "trainer.max_steps=0"], "give steps from 1 on, or -1, which leaves the end to"),
    ([*TRAIN, "trainer.num_train_epochs=0"], "give a number above 0"),
    ([*TRAIN, "trainer.num_train_epochs=-1"], "give a number above 0"),
    ([*TRAIN, "trainer.weight_decay=-1"], "trainer.weight_decay=-1 cannot be used"),
    ([*TRAIN, "trainer.max_grad_norm=-1"], "or 0, which clips nothing"),
    ([*TRAIN, "trainer.save_total_limit=0"], "or null, which keeps all"),
    (["plan", "trainer.per_device_train_batch_size=0"], "give a whole number from 1 on"),
    (["plan", "trainer.max_steps=ten"], "trainer.max_steps=ten has the wrong type"),
    ([*TRAIN, "--max-steps", "1"], "--max-steps is no flag of this command: write trainer.max_steps=1;"),
    ([*TRAIN, "--lr=1e-5"], "write trainer.learning_rate=1e-5;"),
    (["plan", "--fancy"], "--fancy is no flag of this command: keys are set as KEY=VALUE;"),
    (
        [*TRAIN, "data.mix={path: dup.jsonl, ratio: 1}"],
        "data.mix takes a list, as in 'data.mix=[{path: dup.jsonl, ratio: 1}]'.",
    ),
    (
        [*TRAIN, "data.mix=rows.jsonl"],
        "a list of mappings with the keys path, ratio, columns, share, as in 'data.mix=[{path:",
    ),
    ([*TRAIN, "data.mix=[rows.jsonl]"], "as in 'data.mix=[{path: rows.jsonl, ratio: 1}]'."),
    ([*TRAIN, "data.columns=prompt"], "it takes a mapping of names to texts or null"),
    ([*TRAIN, "data.max_length=8k"], "it takes a whole number or null, as in data.max_length=8192."),
    ([*TRAIN, "model.lora=[3]"], "model.lora takes a mapping with the keys r, alpha, "),
    (
        [*TRAIN, "model.trust_remote_code=maybe"],
        "it takes true or false, as in model.trust_remote_code=false.",
    ),
    ([*TRAIN, "data.cut=null"], "data.cut=null has the wrong type: it takes a text, as in data.cut=middle."),
    ([*TRAIN, "data.path=${nothing}"], "data.path refers to something that cannot be found"),
    ([*TRAIN, "trainer.max_steps=${nothing}"], "trainer.max_steps refers to something that cannot be found"),
    ([*TRAIN, "output=null"], "output has the wrong type: it takes a folder's name"),
    (["rounds", "lengths=[8k]"], "it takes a list of whole numbers, as in 'lengths=[8192]'."),
    ([*TRAIN, "data.system=Don't"], r"""the word: data.system="\"Don't\""."""),
    ([*TRAIN, "data.columns={prompt: [promt]}"], "data.columns.prompt=['promt'] is no column's name"),
]

RUN = """
import contextlib, io, json, sys
from align import cli
answers = []
for words in json.loads(sys.stdin.read()):
    sys.argv = ["align", *words]
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    answers.append([code, out.getvalue(), error.getvalue()])
json.dump([answers, sorted(set(sys.modules) & set(sys.argv_heavy))], sys.stdout)
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("start")
    (folder / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (folder / "notes.txt").write_text("no rows\n")
    (folder / "notes.pdf").write_text("no rows\n")
    (folder / "adapter").mkdir()
    (folder / "mixed").mkdir()
    (folder / "mixed" / "notes.md").write_text("mine\n")
    (folder / "reported" / "run").mkdir(parents=True)
    (folder / "reported" / "run" / "failed.txt").write_text("why\n")
    (folder / "reported" / "report.html").write_text("<html>mine</html>\n")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    lines = [*ANSWERED, *(words for words, _ in REFUSED)]
    code = RUN.replace("sys.argv_heavy", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, imported = json.loads(done.stdout)
    return {
        "answers": {" ".join(words): answer for words, answer in zip(lines, answers, strict=True)},
        "imported": imported,
        "folder": folder,
    }


def test_no_heavy_library_was_imported(answered):
    assert answered["imported"] == []


@pytest.mark.parametrize("words", ANSWERED, ids=" ".join)
def test_help_and_configuration_are_shown(answered, words):
    code, out, error = answered["answers"][" ".join(words)]
    assert code == 0, error
    assert ("usage: align" in out) if words in ([], ["--help"]) else len(out.splitlines()) > 2


@pytest.mark.parametrize(
    ("words", "sentence"), REFUSED, ids=lambda value: None if isinstance(value, str) else " ".join(value)
)
def test_a_mistake_ends_in_one_sentence(answered, words, sentence):
    code, _, error = answered["answers"][" ".join(words)]
    assert code == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


def test_help_lists_the_commands_own_groups(answered):
    """With what each may be; other commands' groups are left out."""
    train, inspected = (
        answered["answers"][f"{name} --help"][1].splitlines() for name in ("train", "inspect")
    )
    assert "parallel: auto, gather, none, ulysses" in train
    assert not any(line.startswith(("suite:", "gpus:", "generator:")) for line in train)
    assert [line.partition(":")[0] for line in inspected[2 : inspected.index("", 2)]] == [
        "data",
        "data/order",
        "model",
        "model/query_scale",
        "model/rope",
        "positions",
    ]


def test_help_lists_files_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "method").mkdir()
    dpo = (Path(__file__).parents[2] / "hydra_conf" / "method" / "dpo.yaml").read_text()
    (tmp_path / "method" / "mine.yaml").write_text(dpo)
    monkeypatch.setattr(sys, "argv", ["align", "train", "-h", "--config-dir", str(tmp_path), "method=mine"])
    cli.main()
    shown = capsys.readouterr().out.splitlines()
    methods = next(line for line in shown if line.startswith("method: "))
    assert "mine" in methods and "logo" in methods
    assert "    _target_: losses.dpo_loss" in shown


def test_nothing_was_written(answered):
    """Output folders that Hydra made are gone again."""
    assert {path.name for path in answered["folder"].iterdir()} <= {
        "rows.jsonl",
        "notes.txt",
        "notes.pdf",
        "adapter",
        "mixed",
        "reported",
        "outputs",
    }
    assert [path.name for path in (answered["folder"] / "mixed").iterdir()] == ["notes.md"]
    assert (answered["folder"] / "rows.jsonl").stat().st_size > 0
    assert (answered["folder"] / "notes.txt").read_text() == "no rows\n"
    assert not list(answered["folder"].glob("outputs/*"))


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"]], ids=" ".join)
def test_who_reads_the_output_may_stop_early(words):
    """As in `align --help | head -1`."""
    code = f"import sys; from align import cli; sys.argv = ['align', *{words}]; cli.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (exit_codes.PIPE, "")


def test_importing_the_package_imports_nothing_heavy():
    heavy = {*HEAVY, "numpy"}
    commands = ", ".join(f"align.{name}" for name in COMMANDS)
    code = f"import align, sys; {commands}; print(sorted(set(sys.modules) & {heavy}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
