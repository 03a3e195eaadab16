"""`model.extra_tokens`: new rows are the mean everywhere, ids agree, and a run keeps what it trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import export, train
from align.core.errors import UserError
from align.models.checks import check_model
from align.models.extra_tokens import add_rows
from align.models.loading import load_causal_lm, load_config, load_tokenizer, model_tokenizer
from align.models.settings import ModelSettings
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

MARK = "[IND]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_tiny(path)
    return path


def settings(path, *tokens, **more):
    return ModelSettings(path=str(path), extra_tokens=list(tokens or (MARK,)), dtype="float32", **more)


def tables(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


# ---- rows


def test_new_rows_are_the_mean_of_all_earlier_ones(folder):
    """128 tokens and two new ones: 130 rows, the last two the mean of the first 128, twice the same."""
    plain = load_causal_lm(ModelSettings(path=str(folder), dtype="float32"))
    one, two = (load_causal_lm(settings(folder, MARK, "[END]")) for _ in range(2))
    assert one.config.vocab_size == load_config(settings(folder, MARK, "[END]")).vocab_size == 130
    for before, after, again in zip(tables(plain), tables(one), tables(two), strict=True):
        assert after.shape == (130, 64) and torch.equal(after[:128], before) and torch.equal(after, again)
        torch.testing.assert_close(after[128:], before.mean(0).expand(2, -1), rtol=1e-6, atol=1e-7)
    ids = torch.tensor([[9, 128, 10, 129]])
    assert one(ids).logits.shape == (1, 4, 130)


def test_rows_of_a_padded_vocabulary_are_set_and_none_is_added():
    """The docstring's example: two tokens and a row of padding; two new tokens take it and one more."""
    model = tiny_model(vocab_size=8, hidden_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    with torch.no_grad():
        model.get_input_embeddings().weight[:3, :2] = torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    add_rows(model, [2, 3], known=2)
    embedding, head = tables(model)
    assert embedding.shape == (8, 8) and model.config.vocab_size == 8  # eight rows were there
    assert embedding[:4, :2].tolist() == [[1.0, 0.0], [3.0, 2.0], [2.0, 1.0], [2.0, 1.0]]
    torch.testing.assert_close(head[3], head[:2].mean(0))


def test_a_tied_head_stays_tied_and_one_with_a_bias_gets_its_entry():
    tied = tiny_model(tie_word_embeddings=True)
    add_rows(tied, [128], known=128)
    embedding, head = tables(tied)
    assert embedding is head and embedding.shape == (129, 64)
    biased = tiny_model()
    biased.lm_head.bias = torch.nn.Parameter(torch.arange(128.0))
    add_rows(biased, [128], known=128)
    assert biased.lm_head.bias[128].item() == 63.5


def test_rows_between_are_no_chance(folder):
    """A tokenizer with more tokens than the model has rows: what lies between is the mean too."""
    model = tiny_model(vocab_size=120)
    add_rows(model, [128], known=128)
    embedding, _ = tables(model)
    assert embedding.shape == (129, 64)
    for row in embedding[120:]:
        torch.testing.assert_close(row, embedding[:120].mean(0), rtol=1e-6, atol=1e-7)


def test_a_mark_is_one_token_wherever_a_text_has_it(folder):
    tokenizer = model_tokenizer(settings(folder))
    assert tokenizer("w9 w10 [IND]")["input_ids"] == [9, 10, 128]
    assert tokenizer("w9 w10[IND]")["input_ids"] == [9, 10, 128]
    assert tokenizer.decode([9, 128], skip_special_tokens=True).endswith(MARK)
    assert len(load_tokenizer(str(folder))) == 128


# ---- what is refused


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([""], r"names '': a token is a text without white space"),
        ([" [IND]"], r"names ' \[IND\]': a token is a text without white space"),
        (["[I\nND]"], r"without characters that are not printed"),
        (["[IND]\u200b"], r"without characters that are not printed"),
        (["x" * 65], r"a token of 65 characters"),
        ([MARK, MARK], r"names '\[IND\]' twice"),
    ],
)
def test_what_is_no_token_is_refused(folder, tokens, sentence):
    with pytest.raises(UserError, match=sentence):
        check_model(settings(folder, *tokens))


def test_a_token_that_exists_is_refused_with_its_id(folder):
    for token, place in (("w9", 9), ("<|im_end|>", 3)):
        with pytest.raises(UserError, match=rf"has already \(id {place}\), so that its rows are there"):
            model_tokenizer(settings(folder, token))


def test_a_model_with_an_embedding_in_every_layer_is_refused_before_it_loads(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size_per_layer_input": 128}))
    with pytest.raises(UserError, match="a model of the type llama has an embedding in every layer"):
        load_config(settings(tmp_path))


# ---- runs


def rows(tmp_path, count=6):
    lines = [
        {
            "prompt": [{"role": "user", "content": f"w{9 + i} w{20 + i} {MARK if i % 2 else ''}"}],
            "chosen": f"w{40 + i} w{41 + i}",
            "rejected": f"w{60 + i}",
        }
        for i in range(count)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words(folder, tmp_path, *more):
    return [
        *(f"model.path={folder}", f'model.extra_tokens=["{MARK}"]', f"data.path={rows(tmp_path)}"),
        *("data.eval_size=0", "trainer.use_cpu=true", "trainer.save_steps=1", "trainer.max_steps=2"),
        *("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=1"),
        *("trainer.learning_rate=0.01", "trainer.warmup_steps=0"),
        *more,
    ]


ADAPTERS = {
    "full": [],
    "half": ["adapter=half"],
    "lora": ["adapter=lora", "adapter.r=4", "adapter.modules_to_save=[embed_tokens,lm_head]"],
    "tokens": ["adapter=lora", "adapter.r=4", "adapter.train_tokens=[128]"],
}


@pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS)
def test_a_run_trains_the_rows_keeps_them_and_exports_them(folder, tmp_path, lora):
    """The frozen reference, or the adapter switched off, starts at a margin of 0: it has the same rows."""
    output = tmp_path / "run"
    train(*words(folder, tmp_path, "method=dpo", f"output={output}", *lora))
    state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["log_history"][0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    model = tmp_path / "model"
    export(f"path={output}", f"output={model}")
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.convert_tokens_to_ids(MARK) == 128 and len(tokenizer) == 129
    found = AutoModelForCausalLM.from_pretrained(model)
    assert found.config.vocab_size == 129
    mean = load_causal_lm(settings(folder)).get_input_embeddings().weight[128]
    assert not torch.allclose(found.get_input_embeddings().weight[128], mean)  # it was trained
    with pytest.raises(UserError, match=r"names '\[IND\]', which the tokenizer of .* has already \(id 128\)"):
        load_config(settings(model))


def test_a_resumed_run_ends_as_an_unbroken_one(folder, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for output in (whole, broken):
        train(*words(folder, tmp_path, "method=dpo", f"output={output}"))
    for name in ("checkpoint-2", "model"):
        shutil.rmtree(broken / name)
    (broken / "results.json").unlink()
    train(*words(folder, tmp_path, "method=dpo", f"output={broken}"))
    first, second = (load_file(path / "model" / "model.safetensors") for path in (whole, broken))
    assert first["model.embed_tokens.weight"].shape == (129, 64)
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=1e-6, atol=1e-7)


def test_a_reference_without_rows_for_the_policys_tokens_is_refused(folder, tmp_path):
    """The exported model has the mark's row, its base has not: where rows hold the mark, it could not read them."""
    extended = tmp_path / "extended"
    load_causal_lm(settings(folder)).save_pretrained(extended)
    model_tokenizer(settings(folder)).save_pretrained(extended)
    plain = [word for word in words(extended, tmp_path, "method=dpo") if "extra_tokens" not in word]
    with pytest.raises(
        UserError, match=r"reference\.model=.* has rows for 128 tokens, and the policy reads 129"
    ):
        train(*plain, f"output={tmp_path / 'run'}", f"reference.model={folder}")


def test_a_reference_of_other_ids_is_refused_before_weights_load(folder, tmp_path, monkeypatch):
    """A tokenizer with one token more puts the mark elsewhere; a base without the mark's row cannot read it."""
    other = tmp_path / "other"
    save_tiny(other)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    monkeypatch.setattr("align.training.setup.load_causal_lm", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(
        UserError, match=r"get the ids \[128\] behind .* and \[129\] behind those of reference"
    ):
        train(
            *words(folder, tmp_path, "method=dpo", f"output={tmp_path / 'run'}", f"reference.model={other}")
        )
