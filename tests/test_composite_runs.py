"""A composite of text and images from a folder to a folder: planned, verified, trained, exported, evaluated."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from align import cli
from align.data.chat_template import ChatTemplate
from align.data.template import text_message
from align.models.loading import load_tokenizer
from align.training.trained_policy import merged_model, read_policy
from tests.rows import make_rows
from tests.tiny import PROCESSOR_FILES, save_tiny_composite, tiny_tokenizer

KINDS = [pytest.param("mistral3", marks=pytest.mark.slow), "qwen2_5_vl", "gemma3"]


def run(monkeypatch, capfd, *arguments: str) -> tuple[str, str]:
    """A command in this process that ends well; what it said on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["align", *arguments])
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    out, err = capfd.readouterr()
    assert not code, err
    return out, err


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_composite(folder / "base", request.param)
    make_rows(folder / "rows.jsonl")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def is_text(name: str) -> bool:
    """Checkpoints name the parts in an order of their own: `vision_tower…`, `visual…`, `multi_modal_projector…`."""
    return not name.removeprefix("model.").startswith(("vision", "visual", "multi_modal"))


@pytest.mark.parametrize("lora", [0, 2], ids=["full", "lora"])
def test_trained_and_exported_as_the_composite_it_came_as(base, lora, tmp_path, monkeypatch, capfd):
    """Every weight of the text part has moved (of LoRA's targets alone), and none of the others by a bit."""
    _, said = run(
        monkeypatch,
        capfd,
        "train",
        f"model.path={base / 'base'}",
        f"data.path={base / 'rows.jsonl'}",
        "method=dpo",
        f"model.lora.r={lora}",
        "trainer.learning_rate=1e-2",
        "trainer.max_steps=2",
        f"output={tmp_path / 'run'}",
    )
    assert said.count("is a composite: its text part trains;") == 1
    run(monkeypatch, capfd, "export", f"path={tmp_path / 'run'}", f"output={tmp_path / 'whole'}")
    before, after = weights(base / "base"), weights(tmp_path / "whole")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    text = {name for name in before if is_text(name)}
    targets = {name for name in text if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert moved == ({name for name in targets if name.endswith("weight")} if lora else text)
    assert text < before.keys()
    configs = [
        json.loads((folder / "config.json").read_text()) for folder in (base / "base", tmp_path / "whole")
    ]
    assert configs[0]["model_type"] == configs[1]["model_type"]
    assert configs[0]["architectures"] == configs[1]["architectures"]
    assert configs[0]["vision_config"] == configs[1]["vision_config"]
    for name in PROCESSOR_FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (base / "base" / name).read_bytes()
    assert (
        "AutoModelForImageTextToText.from_pretrained('whole'"
        in (tmp_path / "whole" / "README.md").read_text()
    )
    ids = torch.arange(8, 40)[None]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        expected = merged_model(read_policy(tmp_path / "run")).eval()(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, expected)


def test_a_full_run_is_exported_without_its_base(base, tmp_path, monkeypatch, capfd):
    """The run's own folder has the processor's files by then."""
    moved = tmp_path / "base"
    moved.symlink_to(base / "base")
    run(
        monkeypatch,
        capfd,
        "train",
        f"model.path={moved}",
        f"data.path={base / 'rows.jsonl'}",
        "method=simpo",
        "trainer.max_steps=1",
        f"output={tmp_path / 'run'}",
    )
    moved.unlink()
    run(monkeypatch, capfd, "export", f"path={tmp_path / 'run'}", f"output={tmp_path / 'whole'}")
    assert all((tmp_path / "whole" / name).is_file() for name in PROCESSOR_FILES)


def test_planned_verified_and_evaluated(base, tmp_path, monkeypatch, capfd):
    out, _ = run(
        monkeypatch,
        capfd,
        "plan",
        f"model.path={base / 'base'}",
        "gpus=h100_80gb",
        "rows.prompt=64",
        "rows.answer=8",
    )
    assert "(the text part, float32" in out
    out, _ = run(monkeypatch, capfd, "verify", f"model.path={base / 'base'}", "model.lora.r=2")
    assert "│ yes" in out and "language_model" in out
    run(
        monkeypatch,
        capfd,
        "evaluate",
        "suite=preference",
        "method=simpo",
        f"model.path={base / 'base'}",
        f"data.path={base / 'rows.jsonl'}",
        f"output={tmp_path / 'pairs'}",
    )
    assert json.loads((tmp_path / "pairs" / "summary.json").read_text())


def test_a_run_that_goes_on_reads_what_its_checkpoint_has(base, tmp_path, monkeypatch, capfd):
    """Checkpoints of these families name weights otherwise than the model, which reads by its own names alone."""
    words = [
        "train",
        f"model.path={base / 'base'}",
        f"data.path={base / 'rows.jsonl'}",
        "method=simpo",
        "trainer.learning_rate=1e-2",
        "trainer.max_steps=3",
        "trainer.save_strategy=steps",
        "trainer.save_steps=1",
        f"output={tmp_path / 'run'}",
    ]
    run(monkeypatch, capfd, *words)
    through = weights(tmp_path / "run" / "model")
    for gone in ("model", "checkpoint-3"):
        shutil.rmtree(tmp_path / "run" / gone)
    (tmp_path / "run" / "results.json").unlink()
    _, said = run(monkeypatch, capfd, *words)
    assert "at step 2 of 3" in said
    resumed = weights(tmp_path / "run" / "model")
    assert resumed.keys() == through.keys() == weights(base / "base").keys()
    assert all(torch.equal(resumed[name], through[name]) for name in through)
    run(
        monkeypatch,
        capfd,
        "export",
        f"path={tmp_path / 'run' / 'checkpoint-2'}",
        f"output={tmp_path / 'two'}",
    )
    AutoModelForImageTextToText.from_pretrained(tmp_path / "two").load_state_dict(
        merged_model(read_policy(tmp_path / "run" / "checkpoint-2")).state_dict()
    )


# As LLaVA's processor has it: it writes nothing of a content that is a text by itself.
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_processors_template_that_takes_parts_alone_is_rendered_and_shown_on_the_card(
    tmp_path, monkeypatch, capfd
):
    """The rows come out as ChatML writes them, and the card's code asks by parts."""
    save_tiny_composite(tmp_path / "base", "llava")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    (tmp_path / "base" / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    make_rows(tmp_path / "rows.jsonl")
    tokenizer = load_tokenizer(str(tmp_path / "base"))
    assert tokenizer.chat_template == PARTS
    rendered = [
        ChatTemplate(own, re.compile("<[|]im_end[|]>")).prompt(
            "here", [text_message("system", "w8"), text_message("user", "w9 w10")]
        )
        for own in (tokenizer, tiny_tokenizer())
    ]
    assert rendered[0] == rendered[1]
    words = [f"model.path={tmp_path / 'base'}", f"data.path={tmp_path / 'rows.jsonl'}", "method=simpo"]
    run(monkeypatch, capfd, "train", *words, "trainer.max_steps=1", f"output={tmp_path / 'run'}")
    run(monkeypatch, capfd, "export", f"path={tmp_path / 'run'}", f"output={tmp_path / 'whole'}")
    card = (tmp_path / "whole" / "README.md").read_text()
    assert '{"role": "user", "content": [{"type": "text", "text": prompt}]}' in card
