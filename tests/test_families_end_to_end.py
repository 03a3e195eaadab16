"""Each family from a checkpoint folder to a folder, by the commands alone: trained, planned, verified, exported, asked.

Every command runs in a process of its own, as a user's does; the folder has the chat template that TRL has for the
family. `make test` runs four of them, `make test-slow` all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer

from align.models.loading import library_class
from tests.families import FAMILIES, make_pairs, make_questions, save_family
from tests.forked import run

QUICK = ("gemma3_text", "gpt_oss", "qwen3_next", "stablelm")
# One whose window, whose sinks, whose latent attention and whose state a generated token has to go on from.
ASKED = ("gemma3_text", "gpt_oss", "glm4_moe_lite", "qwen3_next")
# Whose mixers cannot take up a state, or take it up token by token, which has to be said.
COSTLY = ("jamba", "minimax")
TRAIN = (
    *("data.eval_size=3", "trainer.max_steps=2", "trainer.gradient_accumulation_steps=2"),
    *("trainer.learning_rate=1e-3", "trainer.disable_tqdm=true"),
)
# What a user should not see of libraries, nor of us.
SCARES = re.compile(r"Traceback|[Ww]arning|\[transformers\]|newly initialized|not used|[Dd]eprecat|\bnan\b")
# The library's word on kernels that are not installed, true on a CPU too.
SLOWER = re.compile(r"^\[transformers\] `\w+` is falling back to its reference PyTorch.*\n", re.MULTILINE)


def slow_but(quick: tuple[str, ...], names: Any) -> list[Any]:
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=slow_but(QUICK, FAMILIES))
def base(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_family(folder / request.param, request.param)
    make_pairs(folder / "rows.jsonl")
    return folder / request.param


def command(base: Path, *words: str) -> str:
    """Runs `align WORDS` on the base, which ends well and says nothing that scares; what it said."""
    log = base.parent / f"{words[0]}.log"
    log.unlink(missing_ok=True)
    if words[0] != "export":
        words = (*words, f"model.path={base}", *attention(base))
    (code,) = run(["align", *words], log=log)
    said = log.read_text()
    assert code == 0, said[-3000:]
    assert not SCARES.search(SLOWER.sub("", said)), said
    return said


def trained(base: Path, name: str, *words: str) -> tuple[str, dict[str, Any]]:
    """`align train` on the rows: what it said, and results.json."""
    output = base.parent / name
    said = command(base, "train", *rows(base), f"output={output}", *TRAIN, *words)
    return said, json.loads((output / "results.json").read_text())


def rows(base: Path) -> tuple[str, ...]:
    return (f"data.path={base.parent / 'rows.jsonl'}", *FAMILIES[base.name].reading)


def attention(base: Path) -> tuple[str, ...]:
    name = FAMILIES[base.name].attention
    return () if name == "sdpa" else (f"model.attention={name}",)


def lora(base: Path) -> tuple[str, ...]:
    targets = FAMILIES[base.name].targets
    return ("model.lora.r=4", *((f"model.lora.target_modules={targets}",) if targets else ()))


def test_an_adapter_is_trained_and_exported(base):
    """What the exported folder computes in the library is what the library's base with PEFT's adapter does."""
    said, results = trained(base, "logo", "method=logo", *lora(base))
    assert ("it costs more than other layers" in said) == (base.name in COSTLY)
    assert results["before"]["eval_loss"] != results["after"]["eval_loss"]
    command(base, "export", f"path={base.parent / 'logo'}", f"output={base.parent / 'whole'}")
    model_class: Any = library_class(AutoConfig.from_pretrained(base))
    with torch.no_grad():
        ids = torch.arange(8, 40)[None]
        found = model_class.from_pretrained(base.parent / "whole")(input_ids=ids).logits
        plain = model_class.from_pretrained(base)
        first = plain(input_ids=ids).logits
        expected = PeftModel.from_pretrained(plain, base.parent / "logo" / "model")(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - first).abs().max() > 1e-4
    template = AutoTokenizer.from_pretrained(base).chat_template
    assert AutoTokenizer.from_pretrained(base.parent / "whole").chat_template == template


def test_all_parameters_train_from_a_margin_of_exactly_zero(base):
    """With tiles, checkpoints on disk and prompts packed into one row, whose numbers are those without."""
    said, results = trained(base, "dpo", "method=dpo")
    assert results["before"]["eval_rewards/margins"] == 0.0
    assert results["before"]["eval_loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert re.search(r"step 1/2 .* margin 0\.000", said)
    assert results["after"]["eval_rewards/margins"] != 0.0
    saving = ("memory.checkpointing=full", "memory.offload=disk")
    if not attention(base):
        saving += ("memory.mlp_chunk=32",)
    packed = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=1")
    _, saved = trained(base, "saving", "method=dpo", *saving, *packed, "data.tokens_per_row=2000")
    assert saved["before"]["eval_rewards/margins"] == 0.0
    assert saved["after"]["eval_loss"] == pytest.approx(results["after"]["eval_loss"], rel=1e-3)


def test_it_is_exact(base):
    assert "│ yes" in command(base, "verify", *lora(base))


def test_it_is_planned(base):
    log = base.parent / "plan.log"
    words = ("gpus=h100_80gb", "method=dpo", f"model.path={base}", *attention(base), *rows(base))
    (code,) = run(["align", "plan", *words], log=log)
    said = log.read_text()
    assert not SCARES.search(SLOWER.sub("", said)), said
    assert code == 0 and "GB" in said, said


@torch.no_grad()
def greedy(base: Path, prompts: list[str], *, tokens: int) -> list[str]:
    """What the library's own forward answers, the whole row read anew for each token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model_class: Any = library_class(AutoConfig.from_pretrained(base))
    model = model_class.from_pretrained(base).eval()
    answers = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        length = ids.shape[1]
        while ids.shape[1] < length + tokens and ids[0, -1] != tokenizer.eos_token_id:
            best = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
        answers.append(tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("base", slow_but(QUICK, ASKED), indirect=True)
def test_it_answers(base):
    """Two questions on one text, which is read once, as the library without a cache, and a text's log-probs."""
    questions, text = make_questions(base.parent)
    short = ("suite.counted=whole", "suite.max_new_tokens=6", f"output={base.parent / 'asked'}")
    command(base, "evaluate", "suite=questions", f"suite.path={questions}", *short)
    samples = (base.parent / "asked" / "samples.jsonl").read_text().splitlines()
    asked = [json.loads(line)["prompt"] for line in questions.read_text().splitlines()]
    expected = greedy(base, asked, tokens=6)
    assert [json.loads(line)["prediction"].strip() for line in samples] == expected
    sizes = ("suite.length=256", "suite.window=64", "suite.stride=32", "suite.edges=[0,64]")
    read = (f"suite.documents={text}", f"output={base.parent / 'read'}")
    command(base, "evaluate", "suite=perplexity", *sizes, *read)
    assert (base.parent / "read" / "summary.json").is_file()
