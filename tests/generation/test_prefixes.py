"""A common prefix is read once, and nobody can tell from the answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.generation import prefixes
from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.local_generator import LocalGenerator
from align.generation.prefixes import PrefixReader, can_share, common_length, find_families
from align.generation.stage import run_dialogues
from align.models.patterned_attention import PATTERNED
from align.patterns.choices import EveryWindow, Hybrid, Shifted
from align.patterns.layers import Chosen, keep_patterns
from align.patterns.pattern import Strided
from tests.generation.helpers import SAMPLING, workspace
from tests.tiny import KINDS, tiny_model, tiny_tokenizer

GREEDY = Sampling(0.0, 1.0, 0, 6)


def words(seed, count):
    rng = np.random.default_rng(seed)
    return " ".join(f"w{i}" for i in rng.integers(8, 128, count))


def request(name, content, sampling=SAMPLING):
    return Request(name, (Message("user", content),), sampling, derive_seed(3, name))


def generator(kind="llama", *, share=True, batch_size=4, keep=4096, load=None):
    return LocalGenerator(
        load=load or (lambda: tiny_model(kind)),
        tokenizer=tiny_tokenizer(),
        name="tiny",
        window=4096,
        batch_tokens=100_000,
        batch_size=batch_size,
        keep_tokens=keep,
        share_prefixes=share,
    )


def answers(model, calls):
    groups = list(model.generate(calls, finished=()))
    return {call.id: completion for group in groups for call, completion in group}


def mixed_calls():
    """Four samples of one prompt, four questions to one text, two texts more, one alone."""
    text, other = words(1, 150), words(2, 90)
    calls = [request(f"sample{i}", words(0, 120)) for i in range(4)]
    calls += [request(f"question{i}", f"{text} {words(10 + i, 3 + 4 * i)}") for i in range(4)]
    calls += [request(f"other{i}", f"{other} {words(20 + i, 5)}") for i in range(2)]
    return [*calls, request("alone", words(3, 60)), request("greedy", words(0, 120), GREEDY)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [16, 64])
def test_shared_and_unshared_answers_are_the_same_token_by_token(kind, block, monkeypatch):
    monkeypatch.setattr(prefixes, "BLOCK", block)
    calls = mixed_calls()
    shared, plain = generator(kind), generator(kind, share=False)
    expected = answers(plain, calls)
    assert answers(shared, calls) == expected
    assert "_prefixes" not in vars(plain)
    assert len({expected[f"sample{i}"].text for i in range(4)}) == 4


@pytest.mark.parametrize(
    "patterns",
    [
        EveryWindow(20, sinks=3),
        EveryWindow(8),  # which ends behind the prefix
        EveryWindow(300),  # which hides nothing
        Shifted(16),
        Hybrid(Strided(8, recent=1, stride=2), full_layers=[1]),
    ],
    ids=str,
)
def test_chosen_patterns_see_the_same_of_a_prefix(patterns, monkeypatch):
    """Of a layer's own pattern, or one for each run of heads; padding stands between prefix and rest."""
    monkeypatch.setattr(prefixes, "BLOCK", 16)

    def load():
        model = tiny_model(initializer_range=0.1)
        keep_patterns(model.config, Chosen(patterns, {"_target_": str(patterns)}))
        model.set_attn_implementation(PATTERNED)
        return model

    assert can_share(load().config)
    calls = mixed_calls()
    shared = generator(load=load)
    expected = answers(generator(share=False, load=load), calls)
    assert answers(shared, calls) == expected
    plain = generator(load=lambda: tiny_model(initializer_range=0.1))
    assert (expected == answers(plain, calls)) == (patterns == EveryWindow(300))
    assert shared._prefixes.tokens_read > 0


def test_a_beginning_is_read_once_for_all_that_share_it(monkeypatch):
    """Four prompts of n tokens that are the same: n − 1 tokens are read before the batch, not 4n."""
    monkeypatch.setattr(prefixes, "BLOCK", 64)
    calls = [request(f"s{i}", words(0, 300)) for i in range(4)]
    model = generator()
    answers(model, calls)
    assert model._prefixes.tokens_read == len(model.encode(calls[0])) - 1


def test_the_later_calls_of_a_dialogue_read_only_what_is_new(tmp_path, monkeypatch):
    """LongPO: four questions to a chunk, then an answer to one; two chunks at a time fit what is kept."""
    monkeypatch.setattr(prefixes, "BLOCK", 32)
    chunks = [words(40 + i, 200) for i in range(3)]

    def ask(i, chunk):
        said = yield [request(f"{i}/q{j}", f"{chunk} {words(j, 4)}") for j in range(4)]
        answer = yield [request(f"{i}/a", f"{chunk} {said[0].text}")]
        return said[0].text, answer[0].text

    def run(folder, model):
        dialogues = [ask(i, chunk) for i, chunk in enumerate(chunks)]
        return run_dialogues("longpo", dialogues, workspace(tmp_path / folder, model))

    model = generator(keep=2 * 256)
    assert [len(wave) for wave in model.waves([[request("q", chunk)] for chunk in chunks])] == [2, 1]
    kept = run("kept", model)
    assert kept == run("plain", generator(share=False))
    prefix = 200 + len(model.encode(request("e", ""))) - 8
    assert model._prefixes.tokens_read < 3 * (prefix + 2 * 32)
    forgetful = generator(keep=0)
    assert run("forgotten", forgetful) == kept
    assert forgetful._prefixes.tokens_read > 1.5 * model._prefixes.tokens_read


def test_blocks_taken_over_are_bitwise_those_read_anew(monkeypatch):
    """What is kept changes no bit, so a restarted run, which keeps nothing yet, computes the same."""
    monkeypatch.setattr(prefixes, "BLOCK", 32)
    model = tiny_model()
    first, second = np.arange(8, 108) % 120 + 8, np.arange(8, 128) % 120 + 8
    second[90:] = 9
    kept, fresh = PrefixReader(model, keep_tokens=1000), PrefixReader(model, keep_tokens=1000)
    with torch.inference_mode():
        kept.read(first)
        for ours, anew in zip(kept.read(second), fresh.read(second), strict=True):
            assert torch.equal(ours[0], anew[0]) and torch.equal(ours[1], anew[1])
    assert kept.tokens_read == 100 + 120 - 64


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=90), min_size=1, max_size=12))
def test_families_hold_every_prompt_once_and_share_what_they_have_in_common(drawn):
    """Prompts of few different tokens, each repeated 20 times, so that long prefixes are common."""
    prompts = [np.repeat(np.array(ids), 20) for ids in drawn]
    families = find_families(prompts, [0] * len(prompts))
    assert sorted(i for family in families for i in family.members) == list(range(len(prompts)))
    for family in families:
        first = prompts[family.members[0]]
        for i in family.members:
            assert family.shared < len(prompts[i])
            assert common_length(first, prompts[i]) >= family.shared
            if len(family.members) > 1:
                assert 2 * family.shared >= len(prompts[i]) and family.shared >= 32


def test_prompts_of_different_samplings_are_no_family():
    prompt = np.arange(100)
    assert [family.members for family in find_families([prompt] * 3, ["a", "b", "a"])] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    ("kind", "values"), [("llama", {}), ("gpt_oss", {"layer_types": ["full_attention"] * 2})]
)
def test_sinks_read_a_prefix_once(kind, values):
    """The next token's probabilities are those of rows read whole, far closer than what is asked for."""
    model = tiny_model(kind, **values)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    assert can_share(model.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "ROUNDING", 1e-4)
        assert prefixes.reads_alike(model)


def test_a_model_that_asks_for_more_reads_every_prompt_whole():
    """Soft-capped scores are not computed behind a prefix; every prompt of such a model is read whole."""
    capped = tiny_model(
        "gemma2", layer_types=["full_attention"] * 2, attn_logit_softcapping=1.0, query_pre_attn_scalar=16
    )
    capped.set_attn_implementation("eager")
    assert not prefixes.reads_alike(capped)


def test_a_model_with_a_sliding_window_reads_every_prompt_whole():
    assert can_share(tiny_model().config)
    assert not can_share(tiny_model("mistral", sliding_window=64).config)


def test_a_model_whose_cache_is_compressed_reads_every_prompt_whole():
    """Latent attention keeps 16 + 8 numbers a token in place of its heads' keys and values."""
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    assert not can_share(tiny_model("minicpm3", **ranks, v_head_dim=12, num_key_value_heads=4).config)
