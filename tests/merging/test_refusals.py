"""What cannot be merged ends in one sentence, before weights are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.runs import exit_codes
from tests.merging.helpers import run, save_model


@pytest.fixture
def first(tmp_path):
    return save_model(tmp_path / "first")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def wider(folder):
    save_model(folder, hidden_size=32, head_dim=8)


def other_family(folder):
    save_model(folder, "qwen3")


def other_rope(folder):
    save_model(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e5})


def tied(folder):
    save_model(folder, tie_word_embeddings=True)


def more_tokens(folder):
    save_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)


def pickled(folder):
    save_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder):
    save_model(folder)
    (folder / "model.safetensors").unlink()


def half_precision(folder):
    save_model(folder, dtype=torch.bfloat16)


def cut_off(folder):
    save_model(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def renamed(folder):
    save_model(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def eight_bits(folder):
    save_model(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DIFFERENT = {
    wider: "differ in hidden_size (64 and 32)",
    other_family: "differ in model_type ('llama' and 'qwen3')",
    other_rope: "differ in rope_parameters (",
    tied: "differ in tie_word_embeddings (False and True)",
    more_tokens: "have different tokenizers (1 tokens; the first is '<extra>', with id none and 128)",
    pickled: "has its weights in pickle files (*.bin) alone",
    no_weights: "has no weights (*.safetensors)",
    half_precision: "is stored as F32 in",
    cut_off: "cannot be read (",
    renamed: "has a tensor model.extra.weight, and",
    eight_bits: "as F8_E4M3, which cannot be averaged",
}


@pytest.mark.parametrize("make", DIFFERENT, ids=lambda make: make.__name__)
def test_models_that_do_not_match(make, monkeypatch, capfd, tmp_path, first):
    other = tmp_path / "other"
    make(other)
    code, _, err = run(monkeypatch, capfd, f"models=[{first},{other}]", f"output={tmp_path / 'out'}")
    assert code == exit_codes.USAGE, err
    said = [line for line in err.splitlines() if line.startswith("align merge: ")]
    assert len(said) == 1 and DIFFERENT[make] in said[0], err
    assert "Traceback" not in err and "MiB merged" not in err
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.unfinished").exists()


def test_windows_may_differ(monkeypatch, capfd, tmp_path, first):
    """A model trained on to longer rows and its start: the merged model has the wider window, and that is said."""
    other = save_model(tmp_path / "other", max_position_embeddings=16384)
    code, _, err = run(monkeypatch, capfd, f"models=[{first},{other}]", f"output={tmp_path / 'out'}")
    assert code == 0, err
    assert "differ in their window alone; the merged model is given 16384 tokens" in err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.max_position_embeddings == 16384


WORDS = [
    (["models=[]"], "models=[] names none"),
    (["models=FIRST"], "models=FIRST has the wrong type: it takes a list of texts"),
    (["models=[FIRST]"], "models has 1 and combine=average takes 2 or more"),
    (["models=[FIRST,FIRST]", "base=FIRST"], "combine=average has no use for a base model"),
    (["models=[FIRST,FIRST]", "combine.weights=[1]"], "combine.weights=[1] has 1 for 2 models"),
    (["models=[FIRST,FIRST]", "combine.weights=[1,-1]"], "sum to 0: a mean needs a sum above 0"),
    (["models=[FIRST,FIRST]", "combine.weights=[1,nan]"], "has to be finite numbers"),
    (["models=[FIRST,none/such/folder]"], "models[1]=none/such/folder is no model folder"),
    (
        ["models=[FIRST]", "combine=interpolate"],
        "works on what training has changed: name the model that it started",
    ),
    (
        ["models=[FIRST,FIRST]", "combine=interpolate", "base=FIRST"],
        "models has 2 and combine=interpolate takes 1",
    ),
    (["models=[FIRST,FIRST]", "combine=ties", "base=FIRST", "combine.density=0"], "combine.density=0"),
    (["models=[FIRST,FIRST]", "combine=ties", "base=FIRST", "combine.density=1.5"], "combine.density=1.5"),
    (["models=[FIRST,FIRST]", "combine=mean"], "combine=mean is not known: use average, dare_linear"),
    (["models=[FIRST,FIRST,FIRST]", "combine=slerp"], "models has 3 and combine=slerp takes 2"),
    (
        ["models=[FIRST,FIRST]", "combine=slerp", "combine.weight=half"],
        "combine.weight=half has to be a number",
    ),
    (
        ["models=[FIRST]", "base=FIRST", "combine=half_reset", "combine.scope=rows"],
        "combine.scope=rows is not known",
    ),
    (["models=[FIRST,FIRST]", "form=both"], "form=both is not known: use auto, model, adapter"),
    (["models=[FIRST,FIRST]", "dtype=int8"], "dtype=int8 is not known"),
    (["models=[FIRST,FIRST]", "form=adapter"], "form=adapter: not every one of `models` is an adapter"),
    (["models=[FIRST,FIRST]", "combine._target_=os.system"], "combine._target_=os.system is refused"),
]


@pytest.mark.parametrize(("words", "sentence"), WORDS, ids=[" ".join(words) for words, _ in WORDS])
def test_careless_words(words, sentence, monkeypatch, capfd, tmp_path, first):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").rename(tmp_path / "FIRST")
    code, _, err = run(monkeypatch, capfd, *words, "output=out")
    assert code == exit_codes.USAGE, err
    said = [line for line in err.splitlines() if line.startswith("align merge: ")]
    assert len(said) == 1 and sentence in said[0], err
    assert "Traceback" not in err and not (tmp_path / "out").exists()
