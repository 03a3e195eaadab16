"""What cannot be trained is refused at start, in one sentence that says what to set: no weights are there to load."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from align.runs import exit_codes
from tests.families import make_pairs, save_family
from tests.forked import run

KINDS = ("gemma3_text", "qwen3_next", "lfm2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for each of `KINDS` with everything but weights, and rows."""
    folder = tmp_path_factory.mktemp("bad")
    for kind in KINDS:
        save_family(folder / kind, kind, weights=False)
    save_family(folder / "odd", "gemma3_text", weights=False)
    path = folder / "odd" / "config.json"
    config = json.loads(path.read_text()) | {"layer_types": ["sliding_attention", "wavelet_attention"]}
    path.write_text(json.dumps(config))
    make_pairs(folder / "rows.jsonl")
    return folder


CASES = {
    "a state among processes": (
        "qwen3_next",
        ["parallel=gather", "parallel.degree=2"],
        "have layers that keep a state, which runs along the whole row: set parallel.degree=1 in place of 2.",
    ),
    "rows of their own among processes": (
        "gemma3_text",
        ["model.attention=library", "parallel=gather", "parallel.degree=2"],
        "which model.attention=library cannot: set parallel=none.",
    ),
    "tiles around the library's attention": (
        "gemma3_text",
        ["model.attention=library", "memory.mlp_chunk=16", "memory.checkpointing=full"],
        "set memory.mlp_chunk=null.",
    ),
    "a layer type that nobody knows": (
        "odd",
        [],
        "got ['sliding_attention', 'wavelet_attention']): correct that, or install the version of transformers that "
        "the model was made for.",
    ),
    "a target that the model has not": (
        "lfm2",
        ["model.lora.r=4"],
        "names o_proj, which Lfm2ForCausalLM does not have: name some of in_proj, k_proj, out_proj, q_proj, v_proj, "
        "w1, w2, w3, or set adapter.target_modules=[all-linear].",
    ),
    "no weights": (
        "gemma3_text",
        [],
        "has a config.json but no weights (*.safetensors or *.bin): name the folder that has both.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_sentence_and_nothing_is_written(name, folder, tmp_path):
    kind, words, sentence = CASES[name]
    paths = [
        f"model.path={folder / kind}",
        f"data.path={folder / 'rows.jsonl'}",
        f"output={tmp_path / 'out'}",
    ]
    (code,) = run(["align", "train", *paths, *words], log=tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert code == exit_codes.USAGE, said
    refusals = re.findall(r"^align train: .*$", said, re.MULTILINE)
    assert len(refusals) == 1 and refusals[0].endswith(sentence), said
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_degree_that_the_processes_do_not_make_is_refused_before_rows_are_read(folder, tmp_path):
    """Not before: a command that starts processes is one process itself."""
    save_family(tmp_path / "model", "gemma3_text")
    paths = [
        f"model.path={tmp_path / 'model'}",
        f"data.path={folder / 'rows.jsonl'}",
        f"output={tmp_path / 'out'}",
    ]
    (code,) = run(["align", "train", *paths, "parallel=ulysses", "parallel.degree=2"], log=tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert code == exit_codes.USAGE and "Traceback" not in said, said
    assert "parallel.degree=2 does not divide the 1 process of this run: use one of 1" in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", ["verify", "plan"])
def test_other_commands_refuse_such_a_layer_alike(command, folder, tmp_path):
    (code,) = run(["align", command, f"model.path={folder / 'odd'}"], log=tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert code == exit_codes.USAGE and "wavelet_attention']): correct that" in said, said
    assert "Traceback" not in said
