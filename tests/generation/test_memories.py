"""Temp-LoRA: how a text is cut, the rates, one chunk's training by hand, a model that is as before, long answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import align
from align.core.errors import UserError
from align.evaluation.remembered import token_mean
from align.generation.generators import Message, Request, Sampling, WindowError
from align.generation.local import LocalSettings
from align.generation.memories import NoMemory, TempLora, chunks_of
from align.generation.server import OpenAISettings
from align.generation.temp_lora import chunk_logps
from tests.generation.test_local import answers
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SMALL = TempLora(chunk=8, context=None, train_context=16, r=4, alpha=8, learning_rate=0.01, warmup_chunks=0)
IDS = torch.randint(8, 128, (40,), generator=torch.Generator().manual_seed(0))


def test_the_plan_of_the_released_code():
    assert chunks_of(6000, chunk=1024, context=3072) == [
        (0, 0, 1024),
        (0, 1024, 2048),
        (0, 2048, 3072),
        (0, 3072, 4096),
        (1024, 4096, 5120),
        (2048, 5120, 6000),
    ]
    assert chunks_of(20, chunk=8, context=None) == [(0, 0, 8), (0, 8, 16), (0, 16, 20)]


def test_learning_rates():
    """The released code's first chunk trains nothing; counted from 1 it has half the rate, the second all of it."""
    assert [TempLora(warmup_from=0).rate(i) for i in range(4)] == [0.0, 2.5e-5, 5e-5, 5e-5]
    assert [TempLora().rate(i) for i in range(4)] == [2.5e-5, 5e-5, 5e-5, 5e-5]
    assert [TempLora(warmup_chunks=0).rate(i) for i in range(2)] == [5e-5, 5e-5]


def test_perplexity_weighs_tokens():
    """Losses 2, 3, 2.5 on 1024, 1024, 512 tokens: 12.18249396, where the mean of exponentials gives 13.42633600."""
    losses, tokens = [2.0, 3.0, 2.5], [1024, 1024, 512]
    assert math.exp(token_mean(losses, tokens)) == pytest.approx(12.18249396, abs=1e-8)
    theirs = sum(math.exp(loss) * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert theirs == pytest.approx(13.42633600, abs=1e-8)


@torch.no_grad()
def test_log_probs_of_a_chunk_are_the_librarys():
    model = tiny_model()
    expected = model(input_ids=IDS[None]).logits[0].log_softmax(-1)
    for first in (1, 7, 39):
        given = expected[first - 1 : -1].gather(1, IDS[first:, None])[:, 0]
        torch.testing.assert_close(chunk_logps(model, IDS, first), given)


def state(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma3_text"])
def test_the_model_is_as_before_bit_for_bit(kind):
    """Weights, outputs, what trains, modes, modules, attributes and random numbers; also where a block fails."""
    model = tiny_model(kind)
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].train()
    before, logits = state(model), model(input_ids=IDS[None]).logits
    facts = [(name, w.requires_grad) for name, w in model.named_parameters()]
    shape = [(name, type(module), module.training, id(module)) for name, module in model.named_modules()]
    attributes, draws = set(vars(model)), torch.get_rng_state()
    for fails in (False, True):
        try:
            with SMALL.keep(model, seed=1) as kept:
                kept.read(IDS[:16], 8)
                assert not torch.equal(model(input_ids=IDS[None]).logits, logits)
                with kept.without():
                    assert torch.equal(model(input_ids=IDS[None]).logits, logits)
                assert fails is False or 1 / 0
        except ZeroDivisionError:
            assert fails
        assert torch.equal(model(input_ids=IDS[None]).logits, logits)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert facts == [(name, w.requires_grad) for name, w in model.named_parameters()]
        assert shape == [(name, type(m), m.training, id(m)) for name, m in model.named_modules()]
        assert set(vars(model)) == attributes and torch.equal(torch.get_rng_state(), draws)


def test_a_chunk_is_trained_as_by_hand():
    """Two steps of AdamW with the library's own loss, gradients clipped: the same log-probs afterwards."""
    memory = replace(SMALL, dropout=0.0, warmup_chunks=2)
    model, again = tiny_model(), tiny_model()
    with memory.keep(model, seed=3) as kept, torch.no_grad():
        kept.read(IDS[:16], 8)
        kept.read(IDS[:24], 16)
        found = chunk_logps(model, IDS, 24)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapted = get_peft_model(again, LoraConfig(r=4, lora_alpha=8, target_modules=sorted(names)))
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1.0, eps=1e-7, weight_decay=0.0)
    for end, rate in ((16, 0.005), (24, 0.01)):
        labels = IDS[:end].clone()
        labels[: end - 8] = -100
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(2):
            optimizer.zero_grad()
            adapted(input_ids=IDS[None, :end], labels=labels[None]).loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
    expected = chunk_logps(adapted, IDS, 24).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - chunk_logps(tiny_model(), IDS, 24)).abs().max() > 1e-2


def test_what_is_refused():
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with (
        pytest.raises(UserError, match="which has one already"),
        SMALL.keep(adapted.base_model.model, seed=0),
    ):
        pass
    for values, sentence in (
        ({"chunk": 1}, r"suite\.memory\.chunk=1 is too small"),
        ({"context": 0}, r"suite\.memory\.context=0 is too small"),
        ({"steps": 1.5}, r"suite\.memory\.steps=1\.5 has the wrong type"),
        ({"dropout": 1.0}, "is no probability"),
        ({"learning_rate": 0.0}, "finite number above 0"),
        ({"warmup_from": 2}, "warmup_from=2 is not known"),
    ):
        with pytest.raises(UserError, match=sentence):
            TempLora(**values).check("suite.memory")
    with pytest.raises(UserError, match="generator/memory trains an adapter on the model that answers"):
        OpenAISettings(memory=TempLora()).check()
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=128, eos_token_id=1, bos_token_id=1)
    )
    with pytest.raises(UserError, match="finds no linear layer in GPT2LMHeadModel"), SMALL.keep(gpt2, seed=0):
        pass
    model = tiny_model()
    model.lm_head.weight.data.fill_(float("nan"))
    with (
        SMALL.keep(model, seed=0) as kept,
        pytest.raises(UserError, match="the loss of chunk 1 is nan: lower"),
    ):
        kept.read(IDS[:16], 8)


# ---- long answers


def request(
    name: str, *, tokens: int = 40, seed: int = 5, words: int = 12, temperature: float = 1.0
) -> Request:
    text = " ".join(f"w{8 + (7 * i + seed) % 120}" for i in range(words))
    return Request(name, (Message("user", text),), Sampling(temperature, 0.9, tokens, tokens), seed)


def generator(memory=SMALL, *, model=None, window: int = 4096):
    model = model or tiny_model(max_position_embeddings=window)
    return LocalSettings(memory=memory).of_model(model, tiny_tokenizer())


def plain_answers(calls) -> dict:
    """Each by itself, without a memory."""
    return {call.id: found for call in calls for found in answers(generator(NoMemory()), [call]).values()}


def test_without_training_an_answer_in_chunks_is_the_plain_one():
    """The sampler goes on from chunk to chunk, and the context is read anew: 40 tokens, a rate of almost nothing."""
    still = replace(SMALL, learning_rate=1e-30)
    calls = [request(f"r{i}", seed=i) for i in range(3)]
    plain = plain_answers(calls)
    assert answers(generator(still), calls) == plain
    assert all(found.tokens == 40 for found in plain.values())


def test_what_was_written_changes_what_follows():
    """The first chunk is the plain answer's; behind it another text comes. Each request begins with a new adapter."""
    calls = [request(f"r{i}", seed=i) for i in range(3)]
    plain = plain_answers(calls)
    asked = generator()
    before = state(asked._model)
    found = answers(asked, calls)
    for name, completion in found.items():
        words, expected = completion.text.split(), plain[name].text.split()
        assert words[:7] == expected[:7] and words != expected
    assert answers(generator(), calls[::-1]) == found
    assert answers(generator(), calls, finished={calls[0].digest}).keys() == {"r1", "r2"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in asked._model.state_dict().items())


def test_an_answer_may_grow_beyond_the_window(capfd):
    """A window of 64: 8 for a chunk, 56 that are seen; a plain generator refuses the request."""
    call = request("long", tokens=90, words=20)
    with pytest.raises(WindowError, match="exceed the model's window of 64"):
        answers(generator(NoMemory(), window=64), [call])
    found = answers(generator(window=64), [call])["long"]
    assert found.tokens == 90 and found.finish == "length"
    assert "long: the model sees the last 56 tokens of prompt and answer alone" in capfd.readouterr().err
    with pytest.raises(WindowError, match="is longer than the 56 that the model sees before a chunk of 8"):
        answers(generator(window=64), [request("wide", words=60)])
    with pytest.raises(UserError, match="asks for log-probs of given texts"):
        generator().log_probs([])


def test_answers_end_where_the_model_ends_them():
    """A greedy answer that ends within its second chunk, as the plain one does."""
    tokenizer = tiny_tokenizer()
    model = tiny_model()
    call = replace(request("r", temperature=0.0), sampling=Sampling(0.0, 1.0, 11, 40))
    still = replace(SMALL, learning_rate=1e-30)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 50
    plain = answers(generator(NoMemory(), model=model), [call])["r"]
    assert answers(generator(still, model=model), [call])["r"] == plain
    assert plain.finish == "stop" and 11 <= plain.tokens < 40


def test_long_writing_by_the_command_and_a_cache_that_knows_the_memory(tmp_path):
    """Answers with and without a memory, and with another one, share a cache and are not taken for each other."""
    save_tiny(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w9 w10 w11", "length": 100, "type": "x"}\n')
    words = [
        "suite=longwrite",
        f"suite.path={tmp_path / 'prompts.jsonl'}",
        f"model.path={tmp_path / 'model'}",
    ]
    words += ["suite.max_new_tokens=30", "suite.temperature=1.0", f"generator.cache={tmp_path / 'cache'}"]
    memory = ["generator/memory=temp_lora", "generator.memory.chunk=8", "generator.memory.warmup_chunks=0"]
    memory += ["generator.memory.learning_rate=0.02", "generator.memory.r=4"]
    starts = {"plain": [], "memory": memory, "again": memory, "other": [*memory, "generator.memory.steps=1"]}
    said = {
        name: align.evaluate(*words, *more, f"output={tmp_path / name}").records[0]["text"]
        for name, more in starts.items()
    }
    assert said["memory"] == said["again"]
    assert len({said["plain"], said["memory"], said["other"]}) == 3
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 3


def test_no_memory_is_the_plain_generator():
    assert type(generator(NoMemory())).__name__ == "LocalGenerator"
    assert LocalSettings()._named("x") == "x" != LocalSettings(memory=SMALL)._named("x")
