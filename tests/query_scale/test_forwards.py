"""Scaled queries on every way to read a row: shared prefix, the library's attention, masks, common prefixes, tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from align.core.errors import UserError
from align.generation.batches import pad_rows
from align.generation.generators import Message, Request, Sampling
from align.generation.local_generator import LocalGenerator
from align.generation.prefixes import Family, PrefixReader, reads_alike
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.numeric import measure
from align.models.query_scale import scale_of
from align.models.settings import LIBRARY, MASKED
from align.models.structure import set_reading
from align.models.text_part import current_attention, set_attention, text_config
from align.patterns.choices import EveryWindow
from align.patterns.layers import Chosen, keep_patterns
from align.query_scale.constant import Constant
from align.query_scale.llama4 import Llama4
from align.query_scale.log_length import LogLength
from align.query_scale.scale import plain
from tests.longseq.doubled import doubled
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps
from tests.tiny import tiny_composite, tiny_model, tiny_tokenizer

SCALES = {
    "log_length": LogLength(window=4, skip_layers=1),
    "llama4": Llama4(beta=0.5, window=4),
    "constant": Constant(1.7, skip_layers=1),
}


def dense(module, query, key, value, attention_mask, *, scaling, position_ids, **kwargs):
    """An oracle that knows nothing of ours: scores of whole rows times the factor that the test names."""
    shared = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(shared, 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores * FACTORS[module.config.name_or_path](position_ids, module.layer_idx)[:, None, :, None]
    return ((scores + attention_mask).softmax(-1) @ value).transpose(1, 2), None


FACTORS = {
    "log_length": lambda p, layer: (
        ((p + 1).double().log() / torch.tensor(4.0).double().log()).clamp(min=1)
        if layer
        else p.double() * 0 + 1
    ),
    "llama4": lambda p, layer: 1 + 0.5 * (1 + p // 4).double().log(),
    "constant": lambda p, layer: p.double() * 0 + (1.7 if layer else 1.0),
}
AttentionInterface.register("test_dense", dense)
AttentionMaskInterface.register("test_dense", eager_mask)


def build(name: str | None, attention: str, kind: str = "llama", **overrides):
    """A tiny model that reads with a scale, in float64; the oracle's has none in its configuration."""
    model = tiny_model(kind, num_hidden_layers=3, **overrides)
    if name is not None and attention != "test_dense":
        model.config.query_scale = plain(SCALES[name])
    model.config.name_or_path = name or ""
    set_attention(model, attention)
    return model.double().train()


def examples(count: int = 2):
    rng = np.random.default_rng(0)
    rows = ((21, (7, 3, 5)), (9, (2, 8, 1)))[:count]
    return [make_example(rng, prompt=prompt, answers=answers, jump=40) for prompt, answers in rows]


def loss_of(logps):
    return logps.chosen.sum() - logps.rejected.sum() * 0.3


@pytest.fixture(scope="module")
def expected():
    """Log-probs, loss and gradients of padded rows by the oracle."""
    found = {}
    for name in SCALES:
        model = build(name, "test_dense")
        with doubled():
            logps = plain_pair_logps(model, examples())
            found[name] = logps, gradients(model, loss_of(logps))
    return found


WAYS = {
    "packed": (ATTENTION, {}),
    "tiles": (ATTENTION, {"checkpointing": "full", "mlp_chunk": 7}),
    "attention kept": (ATTENTION, {"checkpointing": "keep_attention"}),
    "rows of their own": ("sdpa", {"reading": LIBRARY}),
    "a mask": ("eager", {"reading": MASKED}),
    "a mask and torch's kernels": ("sdpa", {"reading": MASKED}),
}


@pytest.mark.parametrize(("name", "way"), [("log_length", way) for way in WAYS] + [("llama4", "tiles")])
def test_every_way_is_that_of_dense_rows(name, way, expected):
    """Two prompts in one row whose positions jump: log-probs, loss and gradients within 1e-12."""
    attention, levers = WAYS[way]
    model = build(name, attention)
    set_reading(model, levers.get("reading", LIBRARY))
    if "checkpointing" in levers:
        apply_checkpointing(model, levers["checkpointing"], mlp_chunk=levers.get("mlp_chunk"))
    with doubled():
        logps = pair_logps(model, pack(examples()), chunk_size=8)
        found = gradients(model, loss_of(logps))
    wanted, wanted_gradients = expected[name]
    torch.testing.assert_close(logps.chosen.double(), wanted.chosen, rtol=1e-12, atol=0)
    torch.testing.assert_close(logps.rejected.double(), wanted.rejected, rtol=1e-12, atol=0)
    assert_close(found, wanted_gradients, tolerance=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_rows_by_the_librarys_attention(attention, expected):
    for name in SCALES:
        model = build(name, attention)
        with doubled(), torch.no_grad():
            found = plain_pair_logps(model, examples())
        torch.testing.assert_close(found.chosen, expected[name][0].chosen, rtol=1e-12, atol=0)


def test_a_constant_is_the_weights_of_its_queries():
    """Twice the queries are those of twice the weights, to the last bit."""
    scaled, folded = tiny_model(), tiny_model()
    scaled.config.query_scale = plain(Constant(2.0))
    for layer in folded.model.layers:
        layer.self_attn.q_proj.weight.data *= 2
    results = []
    for model in (scaled, folded):
        set_attention(model, ATTENTION)
        with torch.no_grad():
            results.append(pair_logps(model, pack(examples())).rejected)
    assert torch.equal(*results)


def test_dropout_goes_the_plain_way():
    """Where weights are dropped the plain way computes: with as good as none it is what the kernels give."""
    outcomes = []
    for dropout in (0.0, 1e-12):
        model = build("log_length", ATTENTION, attention_dropout=dropout)
        with torch.no_grad(), doubled():
            outcomes.append(pair_logps(model, pack(examples())).chosen)
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=0)


def test_a_scale_changes_what_is_read():
    with torch.no_grad():
        with_scale, without = (
            pair_logps(build(name, ATTENTION), pack(examples())) for name in ("log_length", None)
        )
    assert (with_scale.chosen - without.chosen).abs().min() > 1e-3


def test_composites_keep_it_in_their_text_part():
    rows = pack(examples(1))
    model = tiny_composite("gemma3")
    text_config(model.config).query_scale = plain(Constant(1.5))
    found = []
    for attention in ("eager", "sdpa"):
        set_attention(model, attention)
        set_reading(model, LIBRARY)
        assert current_attention(model) == attention
        found.append(pair_logps(model, rows).chosen)
    set_attention(model, ATTENTION)
    found.append(pair_logps(model, rows).chosen)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-5)
    assert scale_of(model.config) == Constant(1.5)


@pytest.mark.parametrize("name", ["log_length", "llama4"])
def test_patterns_meet_scaled_queries(name):
    """A window of five tokens by both of our ways: loss and gradients of padded rows with masks."""
    model = build(name, ATTENTION)
    keys = {"_target_": "align.patterns.choices.EveryWindow", "window": 5}
    keep_patterns(model.config, Chosen(EveryWindow(5), keys))
    found = measure(model)
    assert found.exact, found
    assert max(found.loss, found.gradient) < 1e-12


def test_attention_that_cannot_scale_is_refused():
    model = build("constant", "sdpa")
    with pytest.raises(UserError, match="flash_attention_2 does not know"):
        set_attention(model, "flash_attention_2")


# ---- generation


def whole(model, ids):
    """Logits of a row read at once."""
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize("name", SCALES)
def test_a_cache_changes_nothing(name):
    """The last token read behind a cache of the others, greedily twelve times: logits and tokens of whole rows."""
    model = build(name, "sdpa").eval()
    ids = torch.arange(5, 14)[None]
    with torch.no_grad(), doubled():
        cached = model.generate(
            ids,
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        again = ids
        for logits in cached.logits:
            expected = whole(model, again)[:, -1]
            torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-6)
            again = torch.cat([again, expected.argmax(-1)[:, None]], 1)
    assert torch.equal(cached.sequences, again)


@pytest.mark.parametrize("name", SCALES)
def test_common_prefixes(name):
    """Two rows of one prefix and one of another, padded on the left: each as if it were read whole."""
    model = build(name, "sdpa").eval()
    first = [*range(5, 15), 20, 21]
    rows = [np.array(row) for row in (first, [*range(5, 15), 30], [*range(40, 47), 50, 51])]
    families = [Family((0, 1), 10), Family((2,), 7)]
    ids, mask = map(torch.from_numpy, pad_rows(rows, families, 0))
    with torch.no_grad(), doubled():
        batch = PrefixReader(model, keep_tokens=0).of_batch(rows, families)
        with batch.attended_by(model):
            found = model(
                ids[:, 10:],
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, 10:],
                past_key_values=batch.cache(),
                use_cache=True,
            ).logits[:, -1]
        for row, logits in zip(rows, found, strict=True):
            torch.testing.assert_close(
                logits, whole(model, torch.from_numpy(row)[None])[0, -1], rtol=1e-10, atol=1e-10
            )
        assert reads_alike(model)


def test_the_local_generator_answers_alike_with_and_without_prefixes():
    requests = [
        Request(
            id=str(i),
            messages=(Message("user", " ".join(f"w{8 + n % 90}" for n in range(60)) + f" w{i + 20}"),),
            sampling=Sampling(temperature=0.0, top_p=1.0, min_new_tokens=0, max_new_tokens=8),
            seed=1,
        )
        for i in range(3)
    ]
    texts = []
    for shares in (True, False):
        generator = LocalGenerator(
            load=lambda: build("log_length", "sdpa").float(),
            tokenizer=tiny_tokenizer(),
            name="tiny",
            window=None,
            batch_tokens=4096,
            batch_size=4,
            share_prefixes=shares,
        )
        texts.append([done.text for batch in generator.generate(requests, finished=()) for _, done in batch])
    assert texts[0] == texts[1]
    assert any(texts[0])
