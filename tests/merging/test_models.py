"""`align merge` on whole models: the folder loads by transformers, and computes what a merge by hand does."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align.adapters.halves import trained_half
from align.merging import models
from align.runs import exit_codes
from align.runs.exclusive import exclusive
from tests.merging.helpers import IDS, logits, run, save_model, weights_of
from tests.test_export import make_run
from tests.tiny import PROCESSOR_FILES, save_tiny_composite, tiny_composite, tiny_tokenizer


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """A base model and two others of its shape."""
    return [save_model(tmp_path / f"m{i}", seed=i) for i in range(3)]


def by_hand(folders: list[Path], function) -> torch.nn.Module:
    """A model whose tensors are `function` of those of the folders, in float64."""
    states = [weights_of(folder) for folder in folders]
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    merged = {name: function(*[state[name].double() for state in states]).float() for name in states[0]}
    model.load_state_dict(merged)
    return model


def arc(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
    if angle < 1e-4:
        return (1 - weight) * a + weight * b
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


LINEAR = {
    "average": (["models=[M1,M2]"], lambda b, x, y: (x + y) / 2),
    "weights": (["models=[M1,M2,M0]", "combine.weights=[1,2,1]"], lambda b, x, y: (x + 2 * y + b) / 4),
    "interpolate": (
        ["combine=interpolate", "models=[M1]", "base=M0", "combine.weight=0.3"],
        lambda b, x, y: b + 0.3 * (x - b),
    ),
    "task arithmetic": (
        ["combine=task_arithmetic", "models=[M1,M2]", "base=M0", "combine.weights=[0.5,-0.2]"],
        lambda b, x, y: b + 0.5 * (x - b) - 0.2 * (y - b),
    ),
    "slerp": (["combine=slerp", "models=[M1,M2]", "combine.weight=0.4"], lambda b, x, y: arc(x, y, 0.4)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_merged_model_computes_what_a_merge_by_hand_does(name, monkeypatch, capfd, tmp_path, folders):
    words, function = LINEAR[name]
    words = [re.sub(r"M(\d)", lambda found: str(folders[int(found[1])]), word) for word in words]
    code, out, err = run(monkeypatch, capfd, *words, f"output={tmp_path / 'out'}")
    assert code == 0, err
    assert f"model {tmp_path / 'out'}" in out and "Merging 21 tensors of" in err
    expected = logits(by_hand(folders, function))
    assert (logits(tmp_path / "out") - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"


@pytest.mark.parametrize("rule", ["ties", "dare_linear", "dare_ties"])
def test_rules_on_differences_stay_between_what_the_models_say(rule, monkeypatch, capfd, tmp_path, folders):
    """Their arithmetic is tested by itself; here a seed gives one model, and another seed another where it draws."""
    base, *rest = folders
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = (f"combine={rule}", f"models=[{rest[0]},{rest[1]}]", f"base={base}", f"seed={seed}")
        code, _, err = run(monkeypatch, capfd, *words, f"output={tmp_path / name}")
        assert code == 0, err
        made.append(weights_of(tmp_path / name))
    for name in made[0]:
        assert torch.equal(made[0][name], made[1][name])
    moved = [not torch.equal(made[0][name], made[2][name]) for name in made[0] if "norm" not in name]
    assert all(moved) if "dare" in rule else not any(moved)


def test_half_reset_gives_half_back(monkeypatch, capfd, tmp_path, folders):
    words = ("combine=half_reset", f"models=[{folders[1]}]", f"base={folders[0]}", "seed=7")
    code, _, err = run(monkeypatch, capfd, *words, f"output={tmp_path / 'out'}")
    assert code == 0, err
    base, tuned, made = weights_of(folders[0]), weights_of(folders[1]), weights_of(tmp_path / "out")
    kept = trained_half({name: tuple(t.shape) for name, t in base.items()}, scope="category", seed=7)
    for name in base:
        assert torch.equal(made[name], (tuned if name in kept else base)[name]), name
    assert 0 < len(kept) < len(base)


@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_weights_keep_their_type_and_sums_are_in_float32(dtype, monkeypatch, capfd, tmp_path):
    pair = [save_model(tmp_path / f"b{i}", seed=i, dtype=torch.bfloat16) for i in range(3)]
    models_ = f"models=[{','.join(map(str, pair))}]"
    code, _, err = run(monkeypatch, capfd, models_, f"output={tmp_path / 'out'}", f"dtype={dtype}")
    assert code == 0, err
    made, states = weights_of(tmp_path / "out"), [weights_of(folder) for folder in pair]
    wanted = torch.bfloat16 if dtype == "stored" else torch.float32
    for name, tensor in made.items():
        exact = sum(state[name].double() for state in states) / 3
        assert tensor.dtype is wanted
        rounding = 1e-2 if wanted is torch.bfloat16 else 1e-6
        torch.testing.assert_close(tensor.double(), exact, rtol=rounding, atol=1e-7)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(wanted).removeprefix("torch.")


def test_several_files_and_an_index(monkeypatch, capfd, tmp_path, folders):
    monkeypatch.setattr(models, "SHARD", 40_000)
    code, _, err = run(
        monkeypatch, capfd, f"models=[{folders[0]},{folders[1]}]", f"output={tmp_path / 'out'}"
    )
    assert code == 0, err
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    expected = logits(by_hand(folders[:2], lambda a, b: (a + b) / 2))
    assert (logits(tmp_path / "out") - expected).abs().max() <= 1e-5 * expected.abs().max()
    again = tmp_path / "again"  # such a folder is read as well
    assert run(monkeypatch, capfd, f"models=[{tmp_path / 'out'},{folders[0]}]", f"output={again}")[0] == 0


def test_a_run_and_its_base(monkeypatch, capfd, tmp_path):
    """A run that trained in full, and one with an adapter, which is merged first; half way back to the base."""
    for lora in (None, {"r": 4}):
        place = tmp_path / ("full" if lora is None else "lora")
        trained = make_run(place, lora=lora)
        tiny_tokenizer().save_pretrained(place / "base")
        output = place / "out"
        words = ("combine=interpolate", f"models=[{place / 'run'}]", f"base={place / 'base'}")
        code, _, err = run(monkeypatch, capfd, *words, f"output={output}")
        assert code == 0, err
        whole = trained if lora is None else copy.deepcopy(trained).merge_and_unload()
        whole.save_pretrained(place / "whole")
        expected = logits(by_hand([place / "base", place / "whole"], lambda a, b: (a + b) / 2))
        assert (logits(output) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert ("adapter is merged into its base first" in err) is (lora is not None)
        assert not list(place.glob(".out*"))


def test_tied_heads_stay_tied(monkeypatch, capfd, tmp_path):
    pair = [save_model(tmp_path / f"t{i}", seed=i, tie_word_embeddings=True) for i in range(2)]
    code, _, err = run(monkeypatch, capfd, f"models=[{pair[0]},{pair[1]}]", f"output={tmp_path / 'out'}")
    assert code == 0, err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    states = [weights_of(folder) for folder in pair]
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(model.state_dict()[name], (states[0][name] + states[1][name]) / 2)


def test_composites_are_merged_whole(monkeypatch, capfd, tmp_path):
    folders = [tmp_path / f"c{i}" for i in range(2)]
    for i, folder in enumerate(folders):
        save_tiny_composite(folder, "gemma3")
        tiny_composite("gemma3", seed=i).save_pretrained(folder)
    code, _, err = run(
        monkeypatch, capfd, f"models=[{folders[0]},{folders[1]}]", f"output={tmp_path / 'out'}"
    )
    assert code == 0, err
    made, states = (
        type(tiny_composite("gemma3")).from_pretrained(tmp_path / "out").state_dict(),
        [tiny_composite("gemma3", seed=i).state_dict() for i in range(2)],
    )
    assert any("vision" in name for name in made)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    assert all((tmp_path / "out" / name).is_file() for name in PROCESSOR_FILES)


def test_the_card_says_what_was_merged_and_keeps_paths_to_itself(monkeypatch, capfd, tmp_path, folders):
    secret = tmp_path / "secret-home"
    folders[0].rename(secret)
    words = ("combine=ties", "combine.density=0.3", f"models=[{folders[1]},{folders[2]}]", f"base={secret}")
    code, _, err = run(monkeypatch, capfd, *words, f"output={tmp_path / 'published'}")
    assert code == 0, err
    card = (tmp_path / "published" / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["tags"] == ["long-preference", "merge"] and "base_model" not in header
    rule = "by the rule Ties (arXiv 2306.01708)"
    for fact in ("# published", rule, "| density | 0.3 |", "| m1 | ", "| base: secret-home |"):
        assert fact in card, fact
    assert str(tmp_path) not in card
    (tmp_path / "document.txt").write_text("w8 w9 w10")
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    exec(found[1], {})  # its example of use runs as it stands


def test_nothing_half_made_is_left(monkeypatch, capfd, tmp_path, folders):
    """A rule that fails in the middle; what a killed merge has left beside it goes with the next one."""
    output = tmp_path / "out"
    half = tmp_path / ".out.unfinished" / "out" / "model.safetensors"
    half.parent.mkdir(parents=True)
    half.touch()
    words = (f"models=[{folders[0]},{folders[1]}]", f"output={output}")
    with exclusive(half.parents[1]):
        code, _, err = run(monkeypatch, capfd, *words)
    assert (code, "in use by another run" in err) == (exit_codes.USAGE, True)
    broken = AutoModelForCausalLM.from_pretrained(folders[1])
    broken.model.norm.weight.data[3] = float("nan")
    broken.save_pretrained(folders[1])
    code, _, err = run(monkeypatch, capfd, *words)
    assert code == exit_codes.USAGE and f"models[1]={folders[1]} holds some" in err
    assert not output.exists() and not half.parents[1].exists()
    folders[1] = folders[2]
    code, _, err = run(monkeypatch, capfd, f"models=[{folders[0]},{folders[1]}]", f"output={output}")
    assert code == 0, err
    code, _, err = run(monkeypatch, capfd, *words)
    assert code == exit_codes.USAGE and "is there and not empty" in err


def on_the_hub(folder: Path, cache: Path, name: str) -> str:
    """A folder as the Hub's cache has it once it was fetched; its id."""
    commit = "0" * 40
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    return name


def test_models_of_the_hub(monkeypatch, capfd, tmp_path, folders):
    """From its cache, without a network: a model, one of a commit, and one whose weights are no safetensors."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first, second = (on_the_hub(f, tmp_path / "hub", f"owner/{f.name}") for f in folders[:2])
    (tmp_path / "hub" / "models--owner--m0" / "refs" / "v2").write_text("0" * 40)
    code, _, err = run(monkeypatch, capfd, f"models=[{first}@v2,{second}]", f"output={tmp_path / 'out'}")
    assert code == 0, err
    header = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert header["base_model"] == ["owner/m0", "owner/m1"]
    assert "| owner/m0@v2 | 0.5 |" in (tmp_path / "out" / "README.md").read_text()
    assert logits(tmp_path / "out").isfinite().all()
    (tmp_path / "hub" / "models--owner--m1" / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    code, _, err = run(monkeypatch, capfd, f"models=[{first},{second}]", f"output={tmp_path / 'new'}")
    assert code == exit_codes.USAGE and "models[1]=owner/m1 has no weights in safetensors" in err
    code, _, err = run(monkeypatch, capfd, f"models=[{first},owner/none]", f"output={tmp_path / 'new'}")
    assert code == exit_codes.USAGE and "models[1]=owner/none could not be fetched from the Hub" in err


def test_from_python(tmp_path, folders):
    found = align.merge(f"models=[{folders[0]},{folders[1]}]", f"output={tmp_path / 'out'}", "combine=slerp")
    assert found == tmp_path / "out"
    with torch.no_grad():
        assert AutoModelForCausalLM.from_pretrained(found)(input_ids=IDS).logits.isfinite().all()
    with pytest.raises(align.UserError, match="models has 1 and combine=average takes 2 or more"):
        align.merge(f"models=[{folders[0]}]", f"output={tmp_path / 'new'}")
