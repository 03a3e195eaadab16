"""A query scale through what a run does: loading, references and their keys, export, merging, the check at start."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, TrainingArguments

from align import export
from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.errors import AlignWarning, UserError
from align.generation.prefix_attention import ATTENTION as PREFIXED
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.probe import prove
from align.longseq.settings import ATTENTIONS, MemorySettings
from align.longseq.verdicts import EXACT, REFUSED
from align.merging.places import find_place
from align.merging.sources import check_alike, open_source
from align.models.identity import Identity
from align.models.loading import library_class, load_causal_lm, load_config
from align.models.patterned_attention import PATTERNED
from align.models.precision import Precision
from align.models.settings import LIBRARY, MASKED, ModelSettings, RopeSettings
from align.models.text_part import SCALES, current_attention, text_config
from align.query_scale.llama4 import Llama4
from align.query_scale.log_length import LogLength
from align.query_scale.scale import plain
from align.reference.build import build_reference
from align.reference.settings import ReferenceSettings, reference_model, resolve_source
from align.training.model_card import model_card
from align.training.preparation import prepare_model
from align.training.trained_policy import merged_config, merged_model, read_policy
from tests.longseq.plain import make_example
from tests.test_export import CONFIG
from tests.tiny import save_tiny

SCALE = LogLength(window=4, skip_layers=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder)
    return folder


def settings_of(folder: Path, scale=SCALE, **values) -> ModelSettings:
    return ModelSettings(path=str(folder), dtype="float32", query_scale=scale, **values)


def rows():
    rng = np.random.default_rng(0)
    return pack([make_example(rng, prompt=21, answers=[7, 3]), make_example(rng, prompt=9, answers=[2, 8])])


def logps(model) -> torch.Tensor:
    with torch.no_grad():
        return pair_logps(model, rows()).chosen


# ---- loading


def test_a_checkpoint_that_comes_with_one_is_read_with_it(base, tmp_path):
    """By our attention and by the library's, without being told; one line says so."""
    scaled = load_causal_lm(settings_of(base), attention=ATTENTION)
    expected = logps(scaled)
    assert not torch.allclose(expected, logps(load_causal_lm(settings_of(base, None), attention=ATTENTION)))
    scaled.save_pretrained(tmp_path)
    with pytest.warns(
        AlignWarning, match=r"is honoured: queries at position p × max\(1, ln\(p \+ 1\) / ln 4\)"
    ):
        again = load_causal_lm(settings_of(tmp_path, None), attention=ATTENTION)
    assert torch.equal(logps(again), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlignWarning)
        library = load_causal_lm(settings_of(tmp_path, None))
    assert current_attention(library) == "sdpa"
    torch.testing.assert_close(logps(library), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", LIBRARY, MASKED])
def test_a_model_in_memory_reads_with_what_its_configuration_has(attention, base):
    """As a notebook hands one over, which transformers loaded and which so far reads without."""
    expected = logps(load_causal_lm(settings_of(base), attention=ATTENTION))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.query_scale = plain(SCALE)
    prepare_model(model, MemorySettings(checkpointing="none"), attention)
    torch.testing.assert_close(logps(model), expected, rtol=1e-5, atol=1e-5)


def test_every_attention_of_ours_scales():
    assert {*ATTENTIONS.values(), PREFIXED, PATTERNED} == set(SCALES)


# The library's plain products with sinks and windows, latent attention, layers that keep a state, soft caps.
@pytest.mark.parametrize(
    "kind",
    [
        "gpt_oss",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("deepseek_v3", "qwen3_next", "gemma2")),
    ],
)
def test_the_check_at_start_reads_with_it(kind):
    config = CONFIG_MAPPING[kind]()
    text_config(config).query_scale = plain(Llama4(beta=0.7, window=3))
    for attention in ("sdpa", LIBRARY, MASKED):
        found = prove(library_class(config), config, attention=attention)
        assert found.kind == EXACT, found.sentence


def test_a_class_that_gives_no_positions_is_refused_at_start():
    config = CONFIG_MAPPING["persimmon"]()
    config.query_scale = plain(Llama4(window=3))
    found = prove(library_class(config), config, attention=LIBRARY)
    assert found.kind == REFUSED
    assert "PersimmonAttention gives its attention no positions" in found.sentence


# ---- references


def test_the_reference_has_the_policys():
    policy = settings_of(Path("start"))
    assert reference_model(ReferenceSettings(), policy).query_scale == SCALE
    assert reference_model(ReferenceSettings(model="other"), policy).query_scale == SCALE
    own = ReferenceSettings(query_scale="checkpoint")
    assert reference_model(own, policy).query_scale is None
    assert resolve_source(own, needs="same", adapter=Lora(r=4), method="dpo") == "frozen"
    with pytest.raises(UserError, match="the policy's query scale"):
        resolve_source(replace(own, source="adapter_off"), needs="same", adapter=Lora(r=4), method="dpo")


@pytest.mark.parametrize("source", ["adapter_off", "frozen", "cached"])
def test_an_untrained_policy_has_no_margin(source, base, tmp_path):
    """Log-probs of the reference are the policy's to the last bit; from the cache, a second time."""
    settings = settings_of(base, adapter=Lora(r=4))
    policy = add_adapter(load_causal_lm(settings, attention=ATTENTION), settings.adapter)
    reference = build_reference(
        ReferenceSettings(cache=str(tmp_path / "cache") if source == "cached" else None),
        source="adapter_off" if source == "adapter_off" else "frozen",
        model=settings,
        policy=policy,
        arguments=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
        logits_chunk=64,
        parallel=None,
    )
    expected = logps(policy)
    for _ in range(2):
        assert torch.equal(reference(policy, rows()).chosen, expected)
    assert reference.usage.cached == (2 if source == "cached" else 0)


def test_keys_of_cached_log_probs_name_it(base, tmp_path):
    """And are what they were before there were scales where there is none."""

    def digest(scale, **values):
        identity = Identity.of(settings_of(base, scale, **values), precision=Precision(), cache=tmp_path)
        return identity, identity.digest

    without, none = digest(None)
    assert "query_scale" not in json.dumps(without.content)
    assert len({none, *(digest(scale)[1] for scale in (SCALE, LogLength(window=8), Llama4(window=4)))}) == 4
    # Window null is the checkpoint's 4,096.
    assert digest(LogLength())[1] == digest(LogLength(window=4096))[1]
    assert (
        digest(LogLength(), rope=RopeSettings(max_position_embeddings=8192))[1]
        == digest(LogLength(window=4096), rope=RopeSettings(max_position_embeddings=8192))[1]
    )


# ---- what a run has left


def make_run(base: Path, folder: Path, *, lora: bool) -> torch.Tensor:
    """A run folder as training leaves it; log-probs of its policy."""
    settings = settings_of(base, adapter=Lora(r=4) if lora else None)
    model = add_adapter(load_causal_lm(settings, attention=ATTENTION), settings.adapter)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    model.save_pretrained(folder / "model")
    written = asdict(replace(settings, adapter=None)) | {"query_scale": plain(SCALE)}
    OmegaConf.save(CONFIG | {"model": written}, folder / "config.yaml")
    return logps(model)


@pytest.mark.parametrize("lora", [True, False])
def test_a_merged_policy_keeps_it(lora, base, tmp_path):
    expected = make_run(base, tmp_path, lora=lora)
    policy = read_policy(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlignWarning)
        merged = merged_model(policy)
    assert merged.config.query_scale == merged_config(policy).query_scale == plain(SCALE)
    torch.testing.assert_close(logps(merged), expected, rtol=1e-5, atol=1e-4)


def test_export_refuses_until_told(base, tmp_path, capsys):
    make_run(base, tmp_path, lora=True)
    config = merged_config(read_policy(tmp_path))
    settings = export.ExportSettings(path="run", output="out")
    with pytest.raises(UserError, match=r"ln 4\) in layers from 1 on.*accept=\[query_scale\]"):
        export.check_scale(config, settings)
    export.check_scale(config, replace(settings, accept=["query_scale"]))
    assert "multiplies the query at position p" in capsys.readouterr().err
    export.check_scale(load_config(settings_of(base, None)), settings)
    assert (
        "## Use"
        in model_card(CONFIG, {}, name="model", serving="An engine multiplies.").split(
            "An engine multiplies."
        )[1]
    )


def test_a_run_names_no_class_that_is_imported(base, tmp_path):
    """What the run's own configuration allows counts for nothing; whoever exports names the package."""
    make_run(base, tmp_path, lora=True)
    config = OmegaConf.load(tmp_path / "config.yaml")
    config.model.query_scale = {"_target_": "tests.query_scale.test_scales.Own", "window": 5}
    config.allow_targets = ["tests"]
    OmegaConf.save(config, tmp_path / "config.yaml")
    with pytest.raises(UserError, match="is refused"):
        read_policy(tmp_path)
    assert read_policy(tmp_path, allow_targets=["tests"]).model.query_scale.window == 5


def test_models_of_unlike_scales_are_not_merged(base, tmp_path):
    for name, scale in (("a", SCALE), ("b", LogLength(window=8, skip_layers=1)), ("c", SCALE)):
        load_causal_lm(settings_of(base, scale)).save_pretrained(tmp_path / name)
        for file in base.glob("tokenizer*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    a, b, c = (open_source(find_place(str(tmp_path / n), "models"), trust_remote_code=False) for n in "abc")
    with pytest.raises(UserError, match="differ in query_scale"):
        check_alike([a, b])
    assert check_alike([a, c])[0].query_scale == plain(SCALE)
