"""Perplexity: every token scored once, with the context that it should have."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import (
    CONFIG_MAPPING,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    TrainingArguments,
)

import align
from align.core.errors import UserError
from align.evaluation.in_training import check_suites
from align.evaluation.perplexity import Perplexity
from align.evaluation.token_logps import learned_positions, sequence_logps, sliding_logps
from align.generation.memories import TempLora
from align.longseq.small_model import build_small
from align.models.loading import library_class
from tests.evaluation.helpers import Answers, evaluation
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@torch.inference_mode()
def plain_logps(model, ids):
    """The library's logits, shifted, one log-softmax."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]


@pytest.fixture
def ids():
    return torch.randint(8, 128, (23,), generator=torch.Generator().manual_seed(0))


def test_equals_the_librarys_logits(model, ids):
    with torch.inference_mode():
        torch.testing.assert_close(sequence_logps(model, ids), plain_logps(model, ids))


@pytest.mark.parametrize("kind", ["nemotron_h", "cohere", "falcon_h1"])
def test_what_a_class_does_around_its_head_is_done_again(kind, ids):
    """Within inference mode conversions have other names: Nemotron-H's of its hidden states; the others scale."""
    config = CONFIG_MAPPING[kind]()
    model = build_small(library_class(config), config, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(sequence_logps(model, ids), plain_logps(model, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 3), (8, 7), (5, 1), (23, 4), (40, 9)])
def test_sliding_windows_score_every_token_once(model, ids, window, stride):
    """Token t of the k-th window is given everything from that window's start on, and no more."""
    expected, scored, start = [], 1, 0
    while scored < len(ids):
        stop = min(start + window, len(ids))
        expected.append(plain_logps(model, ids[start:stop])[scored - start - 1 :])
        scored, start = stop, start + stride
    with torch.inference_mode():
        found = torch.cat(list(sliding_logps(model, ids, window=window, stride=stride)))
    assert len(found) == len(ids) - 1
    torch.testing.assert_close(found, torch.cat(expected))


def test_suite(model, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text(
            " ".join(f"w{(7 * j + i) % 120 + 8}" for j in range(30 + i))
        )
    suite = Perplexity(
        documents=str(tmp_path / "texts"), length=31, window=8, stride=4, edges=[0, 10, 20], max_documents=2
    )
    result = suite.run(evaluation(tmp_path / "out", Answers(str), model=str(folder)))
    assert [record["tokens"] for record in result.records] == [31, 31]
    for record in result.records:
        parts = record["by_position"]
        # 9, 10 and 11 tokens lie in the three ranges; their means add up to the document's.
        total = 9 * parts["0"] + 10 * parts["10"] + 11 * parts["20"]
        assert record["nll"] == pytest.approx(total / 30, rel=1e-5)
    again = suite.run(evaluation(tmp_path / "out", Answers(str), model="gone"))
    assert again.records == result.records
    said = [
        "2 of 3 documents are measured, the longest ones (suite.max_documents=2).",
        "1 of 2 documents were cut at suite.length=31 tokens.",
    ]
    assert again.notes == result.notes == said
    narrow = replace(evaluation(tmp_path / "out", Answers(str), model="gone"), window=lambda: 30)
    assert suite.run(narrow).notes[2].startswith("Documents of up to 31 tokens are longer than the 30 tokens")


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=128, n_positions=16)),
        OPTForCausalLM(
            OPTConfig(
                **dict.fromkeys(("hidden_size", "word_embed_proj_dim", "ffn_dim"), 8),
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=128,
                max_position_embeddings=16,
            )
        ),
    ],
    ids=["gpt2", "opt"],
)
def test_learned_positions_end(model, tmp_path):
    """A table of positions has no row for token 17; RoPE goes on, and is said."""
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in range(8, 28)))
    suite = Perplexity(documents=str(tmp_path / "text.txt"), length=17, window=8, stride=4, edges=[0])
    given = replace(evaluation(tmp_path / "out", Answers(str)), load=lambda: model)
    with pytest.raises(UserError, match=r"suite\.length=17: the model has learned 16 positions.*=16\."):
        suite.run(given)
    assert learned_positions(model) == 16
    assert replace(suite, length=16).run(given).records[0]["tokens"] == 16


def test_computed_positions_have_no_end(model):
    assert learned_positions(model) is None


def write_texts(folder) -> None:
    folder.mkdir()
    for i in range(2):
        words = " ".join(f"w{(7 * j + i) % 120 + 8}" for j in range(40 - 5 * i))
        (folder / f"{i}.txt").write_text(words)


MEMORY = TempLora(chunk=8, context=12, train_context=12, r=4, learning_rate=0.01, warmup_chunks=0)


def test_a_memory_is_measured_beside_the_plain_model(model, tmp_path):
    """Without it each chunk's mean is the library's in the same window; the whole is weighed by tokens."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_texts(tmp_path / "texts")
    suite = Perplexity(documents=str(tmp_path / "texts"), length=40, window=8, stride=4, edges=[0])
    plain = suite.run(evaluation(tmp_path / "plain", Answers(str), model=str(folder)))
    given = evaluation(tmp_path / "out", Answers(str), model=str(folder))
    result = replace(suite, memory=MEMORY).run(given)
    assert [record["nll"] for record in result.records] == [record["nll"] for record in plain.records]
    assert result.records[0].keys() - plain.records[0].keys() == {"nll_chunks", "nll_memory", "chunks"}
    for record, count in zip(result.records, (40, 35), strict=True):
        text = (tmp_path / "texts" / record["id"].split("/")[-1]).read_text()
        ids = torch.tensor(tiny_tokenizer()(text)["input_ids"])
        assert len(ids) == count
        for chunk in record["chunks"]:
            start = max(0, chunk["first"] - 12)
            window = ids[start : chunk["first"] + 8]
            expected = -plain_logps(model, window)[-chunk["tokens"] :].mean()
            assert chunk["nll_chunks"] == pytest.approx(float(expected), rel=1e-5)
        assert [chunk["tokens"] for chunk in record["chunks"]] == [7, 8, 8, 8, *([8] if count == 40 else [3])]
        assert record["chunks"][0]["nll_memory"] == record["chunks"][0]["nll_chunks"]
        assert all(chunk["nll_memory"] != chunk["nll_chunks"] for chunk in record["chunks"][1:])
    scores, details = result.scores, result.details
    change = scores["nll_memory"].mean - scores["nll_chunks"].mean
    assert scores["nll_memory_change"].mean == pytest.approx(change)
    total = sum(
        chunk["nll_memory"] * chunk["tokens"] for record in result.records for chunk in record["chunks"]
    )
    assert details["perplexity_of_tokens"]["nll_memory"] == pytest.approx(math.exp(total / 73))
    assert list(details["nll_by_chunk"]["nll_memory"]) == ["0", "8", "16", "24", "32"]
    again = replace(suite, memory=MEMORY).run(evaluation(tmp_path / "out", Answers(str), model="gone"))
    assert again.records == result.records
    other = replace(suite, memory=replace(MEMORY, steps=1))
    assert other.run(given).records[0]["nll_memory"] != result.records[0]["nll_memory"]


def test_the_command_takes_a_memory(tmp_path, model):
    """By group and key; its messages name the keys."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_texts(tmp_path / "texts")
    words = [
        "suite=perplexity",
        "suite/memory=temp_lora",
        f"suite.documents={tmp_path / 'texts'}",
        "suite.memory.r=2",
    ]
    words += [
        f"model.path={folder}",
        "suite.memory.chunk=16",
        "suite.length=40",
        f"output={tmp_path / 'out'}",
    ]
    result = align.evaluate(*words)
    assert {"nll_chunks", "nll_memory", "nll_memory_change"} <= result.scores.keys()
    with pytest.raises(align.UserError, match=r"suite\.memory\.chunk=1 is too small"):
        align.evaluate(*words, "suite.memory.chunk=1")
    with pytest.raises(align.UserError, match="generator/memory trains an adapter on the model that answers"):
        align.evaluate("suite=retrieval", "generator=openai", "generator/memory=temp_lora", *words[4:5])


def test_a_memory_is_refused_while_a_policy_trains():
    """Before a model is loaded: its adapter would lie on the policy."""
    with pytest.raises(UserError, match=r"suites\.text\.memory puts an adapter on the model"):
        check_suites({"text": Perplexity(memory=MEMORY)}, TrainingArguments(use_cpu=True))


def test_refusals():
    with pytest.raises(UserError, match=r"must be below suite\.window"):
        Perplexity(window=8, stride=8).check()
    with pytest.raises(UserError, match="rise from 0"):
        Perplexity(edges=[5, 2]).check()


def test_other_documents_are_measured_and_other_weights_refused(model, tmp_path):
    """What is stored is known by the text: five other documents in the same places are measured."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    texts = tmp_path / "texts"
    texts.mkdir()
    suite = Perplexity(documents=str(texts), length=31, window=8, stride=4, edges=[0])

    def measured(shift: int, where: str) -> list:
        for i in range(2):
            words = " ".join(f"w{(7 * j + i + shift) % 120 + 8}" for j in range(20))
            (texts / f"{i}.txt").write_text(words)
        return suite.run(evaluation(tmp_path / where, Answers(str), model=str(folder))).records

    first, other = measured(0, "out"), measured(3, "out")
    assert [record["id"] for record in other] == [record["id"] for record in first]
    assert [record["nll"] for record in other] != [record["nll"] for record in first]
    assert other == measured(3, "new")
    assert measured(0, "out") == first
    with pytest.raises(UserError, match="with other weights than the model has now"):
        suite.run(evaluation(tmp_path / "out", Answers(str), model=str(folder), weights="others"))
