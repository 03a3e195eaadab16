"""Chosen patterns in whole models: against masks, in evaluation alone, in keys, in saved configurations, in answers."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from align import cli
from align.core.errors import UserError
from align.longseq import ATTENTION, numeric, pack, pair_logps
from align.longseq.support import check_config
from align.models.identity import Identity
from align.models.loading import load_causal_lm, load_config
from align.models.patterned_attention import PATTERNED, kept_keys
from align.models.precision import Precision
from align.models.settings import ModelSettings
from align.models.structure import library_attention
from align.patterns import layers
from align.patterns.by_head import ByHead
from align.patterns.choices import EveryFull, EveryWindow, Hybrid, Shifted
from align.patterns.exported import ALL_ALIKE, BY_LAYER, check_exported, to_native
from align.patterns.layers import (
    KEY,
    Chosen,
    attention_patterns,
    evaluating_patterns,
    keep_patterns,
    patterns_of,
    patterns_of_run,
)
from align.patterns.pattern import FULL, Strided, Window
from tests.longseq.plain import make_example
from tests.rows import make_rows
from tests.tiny import save_tiny, tiny_model

CHOICES = {
    "window": ({"_target_": "align.patterns.choices.EveryWindow", "window": 5}, EveryWindow(5)),
    "sink_window": (
        {"_target_": "align.patterns.choices.EveryWindow", "window": 4, "sinks": 2},
        EveryWindow(4, sinks=2),
    ),
    "s2": (
        {"_target_": "align.patterns.choices.Shifted", "group": 6, "sinks": 1, "evaluate": "full"},
        Shifted(6, sinks=1, evaluate="full"),
    ),
    "hybrid": (
        {
            "_target_": "align.patterns.choices.Hybrid",
            "full_layers": [1],
            "others": {"_target_": "align.patterns.pattern.Strided", "block": 3, "stride": 2},
        },
        Hybrid(Strided(3, stride=2), full_layers=[1]),
    ),
}


def chosen(name: str) -> Chosen:
    keys, patterns = CHOICES[name]
    return Chosen(patterns, keys)


def patterned_model(name: str | None, kind: str = "llama"):
    model = tiny_model(kind, initializer_range=0.1)
    if name is not None:
        keep_patterns(model.config, chosen(name))
    model.set_attn_implementation(ATTENTION)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("name", CHOICES)
def test_the_shared_prefix_forward_equals_padded_rows_with_masks(name, kind):
    """Loss and every gradient, in float64, several prompts and siblings in a row; the patterns hide something."""
    model = patterned_model(name, kind).double()
    found = numeric.measure(model)
    assert found.exact and found.gradient < 1e-11, found
    batch = pack([make_example(np.random.default_rng(0), prompt=20, answers=[4, 3])])
    model.set_attn_implementation(ATTENTION)
    with torch.no_grad():
        own = pair_logps(model, batch).chosen
        del model.config.__dict__[KEY]
        assert not torch.allclose(own, pair_logps(model, batch).chosen, rtol=1e-3)


@pytest.mark.parametrize("name", CHOICES)
def test_padded_rows_and_a_cache_say_the_same(name):
    """As answers are generated: two rows padded on the left, read whole, and token by token behind a cache."""
    model = patterned_model(name)
    assert library_attention(model) == PATTERNED
    model.set_attn_implementation(PATTERNED)
    ids = torch.randint(8, 128, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        alone = model(ids[1:, 5:]).logits
        places = (mask.cumsum(1) - 1).clamp_min(0)
        padded = model(ids, attention_mask=mask, position_ids=places).logits
        torch.testing.assert_close(padded[1:, 5:], alone, rtol=1e-4, atol=1e-4)
        cache, steps = None, []
        for at in range(9):
            output = model(ids[1:, 5 + at : 6 + at], past_key_values=cache, use_cache=True)
            cache, steps = output.past_key_values, [*steps, output.logits]
    torch.testing.assert_close(torch.cat(steps, 1), alone, rtol=1e-4, atol=1e-4)


def test_keys_that_no_query_sees_are_left_out():
    """Of five keys the second and fourth: output is as with all of them and a mask."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 3, 8) for heads in (4, 2, 2))
    key, value = (torch.cat([one, one[:, :, :2] + 1], dim=2) for one in (key, value))
    seen = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 1, 0, 1]], dtype=torch.bool)[None, None]
    kept, values, of_them = kept_keys(key, value, seen)
    assert kept.equal(key[:, :, [0, 2, 4]]) and of_them.equal(seen[..., [0, 2, 4]])
    wide = [one.repeat_interleave(2, dim=1) for one in (key, value, kept, values)]
    whole = scaled_dot_product_attention(query, wide[0], wide[1], attn_mask=seen)
    found = scaled_dot_product_attention(query, wide[2], wide[3], attn_mask=of_them)
    torch.testing.assert_close(found, whole)
    assert kept_keys(key, value, torch.ones_like(seen))[0] is key


def test_evaluate_full_reads_held_out_rows_with_full_attention():
    """And nothing else: a choice that is the same in evaluation stays."""
    batch = pack([make_example(np.random.default_rng(0), prompt=20, answers=[4, 3])])
    plain = pair_logps(patterned_model(None), batch).chosen
    shifted, window = patterned_model("s2"), patterned_model("window")
    trained = pair_logps(shifted, batch).chosen
    assert not torch.equal(trained, plain)
    with evaluating_patterns():
        assert torch.equal(pair_logps(shifted, batch).chosen, plain)
        assert library_attention(shifted) == "sdpa"
        assert not torch.equal(pair_logps(window, batch).chosen, plain)
    assert torch.equal(pair_logps(shifted, batch).chosen, trained)


def test_a_configuration_carries_them(tmp_path):
    """Through config.json; those for training alone are left behind; attention=full takes the others' place."""
    save_tiny(tmp_path / "base")
    for name in CHOICES:
        settings = ModelSettings(path=str(tmp_path / "base"), layer_patterns=chosen(name))
        load_config(settings).save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(
            (tmp_path / "base" / "model.safetensors").read_bytes()
        )
        again = load_config(ModelSettings(path=str(tmp_path / name)))
        assert patterns_of(again) == (None if name == "s2" else CHOICES[name][1])
    full = Chosen(EveryFull(), {"_target_": "align.patterns.choices.EveryFull"})
    again = load_config(ModelSettings(path=str(tmp_path / "window"), layer_patterns=full))
    assert set(attention_patterns(again)) == {FULL}
    model = load_causal_lm(ModelSettings(path=str(tmp_path / "hybrid"), dtype="float32"))
    assert model.config._attn_implementation == PATTERNED
    assert attention_patterns(model.config) == (Strided(3, stride=2), FULL)
    assert isinstance(attention_patterns(patterned_model("s2").config)[0], ByHead)


@dataclass(frozen=True)
class Elsewhere(EveryWindow):
    """A choice of another package, which has its `evaluate` by default."""

    evaluate: str = "full"


def test_patterns_of_another_package(tmp_path):
    """What trained alone is left behind unread; what the model is read with has to be named again, or given up."""
    keys = {"_target_": f"{__name__}.Elsewhere", "window": 5}
    for evaluate in ("full", "same"):
        config = tiny_model().config
        chosen_here = Chosen.of(Elsewhere(5, evaluate=evaluate), keys)
        keep_patterns(config, chosen_here)
        assert getattr(config, KEY) == keys | {"evaluate": evaluate}
        with evaluating_patterns():
            assert (patterns_of(config) is None) == (evaluate == "full")
        layers._BUILT.clear()  # another process
        if evaluate == "full":
            keep_patterns(config, None)
            assert not hasattr(config, KEY)
        else:
            with pytest.raises(UserError, match=r"of another package .*Elsewhere.*attention=full"):
                keep_patterns(config, None)
            keep_patterns(config, chosen_here)
            assert patterns_of(config) == Elsewhere(5, evaluate="same")
    run = {"attention": keys | {"evaluate": "same"}}
    with pytest.raises(UserError, match=r"targets come from align, and `allow_targets"):
        patterns_of_run(run, allow=("align",))
    assert patterns_of_run({"attention": keys | {"evaluate": "full"}}, allow=("align",)) is None


def test_a_key_names_them(tmp_path):
    """A cached reference of other patterns is another one; in evaluation `full` is the plain model's."""
    save_tiny(tmp_path / "base")

    def digest(name: str | None) -> str:
        patterns = None if name is None else chosen(name)
        settings = ModelSettings(path=str(tmp_path / "base"), layer_patterns=patterns)
        return Identity.of(settings, precision=Precision(), cache=tmp_path / "cache").digest

    names = [None, *CHOICES]
    digests = dict(zip(names, map(digest, names), strict=True))
    assert len(set(digests.values())) == len(names)
    with evaluating_patterns():
        assert digest("s2") == digests[None] and digest("window") == digests["window"]


def test_refusals(tmp_path):
    """A model with windows of its own, layers that it lacks, the library's attention, code from elsewhere."""
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=6)
    with pytest.raises(UserError, match=r"patterns of their own in some layers .*attention=own"):
        keep_patterns(config, chosen("window"))
    config = tiny_model().config
    far = Chosen(Hybrid(Window(4), full_layers=[7]), CHOICES["hybrid"][0] | {"full_layers": [7]})
    with pytest.raises(UserError, match="names layer 7, and the model has 0 to 1"):
        keep_patterns(config, far)
    keep_patterns(config, chosen("window"))
    with pytest.raises(UserError, match=r"model\.attention=masked does not compute"):
        check_config(config, attention="masked")
    setattr(config, KEY, {"_target_": "os.system", "command": "true"})
    with pytest.raises(UserError, match=r"another package \(os\.system\)"):
        keep_patterns(config, None)
    for patterns, words in (
        (EveryWindow(0), "attention.window=0"),
        (EveryWindow(4, sinks=-1), "attention.sinks=-1"),
        (Shifted(1), "attention.group=1"),
        (Shifted(4, evaluate="never"), "attention.evaluate=never"),
        (Hybrid(Window(4), full_layers="top"), "attention.full_layers=top"),
        (Hybrid(Window(0)), "size=0 of Window"),
    ):
        with pytest.raises(UserError, match=words):
            patterns.check()


NATIVE = [(kind, "hybrid") for kind in sorted(BY_LAYER)] + [(kind, "window") for kind in sorted(ALL_ALIKE)]


@pytest.mark.parametrize(("kind", "name"), NATIVE)
def test_windows_become_the_architectures_own_where_it_has_some(kind, name):
    """The model that the library makes of the exported configuration says what ours does."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 128}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3}
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=0, sliding_window=None)
    patterns = Hybrid(Window(5), full_layers=[1]) if name == "hybrid" else EveryWindow(5)
    keep_patterns(config, Chosen(patterns, {"_target_": name}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PATTERNED).eval()
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        check_exported(config, [])
        to_native(model.config)
        exported = AutoConfig.for_model(**model.config.to_dict())
        assert not hasattr(exported, KEY)
        native = AutoModelForCausalLM.from_config(exported, attn_implementation="eager").eval()
        native.load_state_dict(model.state_dict())
        torch.testing.assert_close(native(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_other_patterns_are_exported_only_when_accepted():
    """The sentence says what an engine has to do; what is accepted stays in config.json."""
    model = patterned_model("sink_window")
    with pytest.raises(UserError, match=r"Window\(size=4, sinks=2\).*accept=\[layer_patterns\]"):
        check_exported(model.config, [])
    check_exported(model.config, ["layer_patterns"])
    to_native(model.config)
    assert getattr(model.config, KEY) == CHOICES["sink_window"][0]


@pytest.mark.parametrize(("reference", "evaluate"), [("adapter_off", "full"), ("cached", "same")])
def test_a_policy_and_its_reference_begin_alike(reference, evaluate, tmp_path, monkeypatch):
    """Margins are 0 to the last bit before the first step; the run's model says how it is to be read."""
    save_tiny(tmp_path / "model")
    rows = make_rows(tmp_path / "rows.jsonl", count=6)
    given = [f"model.path={tmp_path / 'model'}", f"data.path={rows}", "data.eval_size=2", "method=dpo"]
    given += ["model.dtype=float32", "attention=s2", "attention.group=16", f"attention.evaluate={evaluate}"]
    given += {
        "adapter_off": ["adapter=lora", "adapter.r=4"],
        "cached": [f"reference.cache={tmp_path / 'logps'}"],
    }[reference]
    given += ["trainer.max_steps=1", "trainer.use_cpu=true", f"output={tmp_path / 'run'}"]
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "align"))
    monkeypatch.setattr(sys, "argv", ["align", "train", *given])
    cli.main()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["before"]["eval_rewards/margins"] == 0.0 != results["after"]["eval_rewards/margins"]
    if reference == "cached":
        saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
        assert saved[KEY] == CHOICES["s2"][0] | {"group": 16, "sinks": 0, "evaluate": "same"}
