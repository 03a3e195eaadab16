"""LoRA adapters of one base joined into one: the sum of their ΔW to 1e-6, whatever their ranks, scales and modules."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from align.runs import exit_codes
from align.training.trained_policy import merged_model, read_policy
from tests.merging.helpers import deltas, logits, run, save_adapter, save_model
from tests.test_export import make_run
from tests.tiny import tiny_tokenizer

PAIRS = {
    "alike": ({"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 8}),
    "ranks and alphas": ({"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 32}),
    "rslora": ({"r": 4, "lora_alpha": 8, "use_rslora": True}, {"r": 9, "lora_alpha": 3}),
    "modules": (
        {"r": 4, "target_modules": ["q_proj", "o_proj"]},
        {"r": 3, "target_modules": ["up_proj", "q_proj"]},
    ),
    "patterns": (
        {"r": 4, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
        {"r": 3, "alpha_pattern": {"v_proj": 6}, "use_rslora": True},
    ),
    "embedding": (
        {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 3, "target_modules": ["embed_tokens"]},
    ),
}


def joined(monkeypatch, capfd, tmp_path, settings, *words):
    base = save_model(tmp_path / "base")
    pair = [save_adapter(base, tmp_path / f"a{i}", seed=i, **own) for i, own in enumerate(settings)]
    output = tmp_path / "out"
    code, out, err = run(monkeypatch, capfd, f"models=[{pair[0]},{pair[1]}]", f"output={output}", *words)
    return base, pair, output, code, out, err


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("rule", ["average", "task_arithmetic"])
def test_the_sum_of_what_each_changes(name, rule, monkeypatch, capfd, tmp_path):
    words = (
        f"combine={rule}",
        "combine.weights=[0.75,0.25]" if rule == "average" else "combine.weights=[0.4,-1.5]",
    )
    weights = (0.75, 0.25) if rule == "average" else (0.4, -1.5)
    base, pair, output, code, out, err = joined(monkeypatch, capfd, tmp_path, PAIRS[name], *words)
    assert code == 0, err
    assert f"adapter {output}" in out
    first, second, found = (deltas(base, folder) for folder in (*pair, output))
    assert set(found) == set(first) | set(second)
    for module, delta in found.items():
        expected = weights[0] * first.get(module, 0) + weights[1] * second.get(module, 0)
        assert (delta - expected).abs().max() <= 1e-6 * expected.abs().max(), module
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output)
    ranks = [settings["r"] for settings in PAIRS[name]]
    assert (
        model.peft_config["default"].r == sum(ranks) == model.peft_config["default"].lora_alpha
        or name == "patterns"
    )
    merged = logits(AutoModelForCausalLM.from_pretrained(base))
    assert not torch.equal(logits(model), merged)


def test_pefts_linear_is_another_matrix(tmp_path):
    """Why factors are not averaged: the relative error of such a mean is about 1, of ours rounding."""
    base = save_model(tmp_path / "base")
    pair = [save_adapter(base, tmp_path / f"a{i}", seed=i, r=4) for i in range(2)]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pair[0], adapter_name="a")
    model.load_adapter(pair[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "linear", combination_type="linear")
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = 0.5 * module.get_delta_weight("a") + 0.5 * module.get_delta_weight("b")
    error = (module.get_delta_weight("linear") - expected).norm() / expected.norm()
    assert error > 0.5


def test_runs_with_adapters_are_joined_too(monkeypatch, capfd, tmp_path):
    """One run twice, with weights 1 and -1: nothing is left; with weights that sum to 1 the same adapter."""
    model = make_run(tmp_path, lora={"r": 4})
    run_folder = tmp_path / "run"
    for weights, output in (("[0.5,0.5]", "same"), ("[1,-1]", "none")):
        words = (
            "combine=task_arithmetic",
            f"combine.weights={weights}",
            f"models=[{run_folder},{run_folder}/model]",
        )
        code, _, err = run(monkeypatch, capfd, *words, f"output={tmp_path / output}")
        assert code == 0, err
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    nothing = logits(base)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "none")), nothing)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = logits(PeftModel.from_pretrained(base, tmp_path / "same"))
    torch.testing.assert_close(again, logits(model))
    card = (tmp_path / "same" / "README.md").read_text()
    assert "LoRA adapters joined into one by the rule TaskArithmetic" in card and "| rank | 8 |" in card


def test_whole_models_come_of_adapters_on_request_or_need(monkeypatch, capfd, tmp_path):
    """`form=model` gives the same function; TIES works on whole differences, and the adapters bring their base."""
    settings = PAIRS["ranks and alphas"]
    base, pair, output, code, _, err = joined(monkeypatch, capfd, tmp_path, settings, "form=model")
    assert code == 0, err
    code, _, err = run(monkeypatch, capfd, f"models=[{pair[0]},{pair[1]}]", f"output={tmp_path / 'adapter'}")
    assert code == 0, err
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(output), logits(adapted), atol=1e-5, rtol=1e-5)
    words = ("combine=ties", f"models=[{pair[0]},{pair[1]}]", f"output={tmp_path / 'ties'}")
    code, _, err = run(monkeypatch, capfd, *words)
    assert code == 0, err
    assert "Whole models are merged, not their adapters: this rule is no sum" in err
    assert (tmp_path / "ties" / "model.safetensors").is_file()


def test_runs_with_adapters_and_another_rope_bring_their_base(monkeypatch, capfd, tmp_path):
    """The base model is stored with its own RoPE; the merged model has the run's."""
    make_run(tmp_path, lora={"r": 4}, rope={"type": "yarn", "factor": 4.0, "theta": 1e6})
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    words = ("combine=interpolate", "form=model", f"models=[{tmp_path / 'run'}]")
    code, _, err = run(monkeypatch, capfd, *words, "combine.weight=1.0", f"output={tmp_path / 'out'}")
    assert code == 0, err
    expected = logits(merged_model(read_policy(tmp_path / "run")))
    torch.testing.assert_close(logits(tmp_path / "out"), expected, atol=1e-5, rtol=1e-5)


REFUSED = {
    "dora": ({"r": 4, "use_dora": True}, "has use_dora=True, which is no product of two factors"),
    "saved modules": ({"r": 4, "modules_to_save": ["norm"]}, "has modules_to_save=['norm']"),
    "start": ({"r": 4, "init_lora_weights": "pissa"}, "began from init_lora_weights=pissa"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_lora_is_told(name, monkeypatch, capfd, tmp_path):
    settings, sentence = REFUSED[name]
    *_, output, code, _, err = joined(monkeypatch, capfd, tmp_path, ({"r": 4}, settings), "form=adapter")
    assert code == exit_codes.USAGE
    assert f"form=adapter: models[1]={tmp_path / 'a1'} {sentence}" in err
    assert not output.exists()


def test_adapters_of_two_bases_are_refused(monkeypatch, capfd, tmp_path):
    pair = []
    for i in range(2):
        base = save_model(tmp_path / f"base{i}", seed=i)
        pair.append(save_adapter(base, tmp_path / f"a{i}", seed=i, r=4))
    words = (f"models=[{pair[0]},{pair[1]}]", f"output={tmp_path / 'out'}")
    code, _, err = run(monkeypatch, capfd, *words, "form=adapter")
    assert code == exit_codes.USAGE and "have different bases (path)" in err
