"""Plans of the library's attention: each answer behind its whole prompt, or a prompt with its answers and a mask."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import CONFIG_MAPPING, MambaConfig, PreTrainedConfig

from align.longseq.checkpointing import apply_checkpointing
from align.models.settings import ModelSettings
from align.models.structure import set_reading
from align.patterns.pattern import Window
from align.planning.architecture import Architecture, UnknownModelError, measure
from align.planning.job import Job, Levers, MaskedRows, OwnRows, Precision, Rows, Strategy, as_read
from align.planning.memory import predict
from align.planning.time import step_time
from tests.planning.plans import plan
from tests.planning.test_planning import CPU, live_peak
from tests.tiny import tiny_model


def test_tokens_and_pairs():
    """Two prompts of 1,000 with answers of 100 and 50: four rows, 2 · (2,000 + 150) tokens, 1,100 of them at once."""
    rows = as_read(Rows(1000, (100, 50), short_prompt=200, prompts=2), "library")
    assert isinstance(rows, OwnRows)
    assert (rows.tokens, rows.at_once, rows.scored) == (4300, 1100, 300)
    assert rows.pairs() == 2 * (1100 * 1101 + 1050 * 1051) / 2
    assert (rows.head_at_once("none"), rows.head_at_once("sequence")) == (100, 1100)
    assert rows.short().tokens == 2 * (2 * 200 + 150)
    assert as_read(Rows(1000, (100, 50)), "sdpa").tokens == 1150


def test_a_mask_has_the_rows_tokens_times_themselves():
    """A row of 1,150 tokens for each prompt, all of whose pairs are computed, whatever the layer sees."""
    rows = as_read(Rows(1000, (100, 50), short_prompt=200, prompts=2), "masked")
    assert isinstance(rows, MaskedRows) and not rows.shared
    assert (rows.tokens, rows.at_once, rows.mask) == (2300, 1150, 1150**2)
    assert rows.pairs() == rows.pairs(Window(8)) == 2 * 1150**2
    assert (rows.head_at_once("none"), rows.head_at_once("sequence")) == (150, 1150)
    assert rows.short().mask == 350**2
    architecture = measure(tiny_model().config, ModelSettings())
    packed, masked = (
        predict(architecture, Job(each, Precision()), Strategy(levers=Levers("full")), CPU).total
        for each in (Rows(1000, (100, 50)), as_read(Rows(1000, (100, 50)), "masked"))
    )
    assert masked - packed == 5 * 1150**2  # a byte, and what is added to a score, in float32


@pytest.mark.parametrize("mode", ["none", "full", "keep_attention"])
def test_live_memory_of_a_mask(mode):
    """As the next, with a mask of 1,520 tokens times themselves."""
    model, architecture = counted_model(mode)
    set_reading(model, "masked")
    rows = MaskedRows(prompt=1400, answers=(60, 60))
    assert planned(architecture, rows, mode) == pytest.approx(live_peak(model, rows), rel=0.15)


@pytest.mark.parametrize("mode", ["none", "full", "keep_attention"])
def test_live_memory(mode):
    """Checkpoints, gradients and transients of a step against torch's own count, within 15 %."""
    model, architecture = counted_model(mode)
    rows = OwnRows(prompt=1400, answers=(60, 60))
    assert planned(architecture, rows, mode) == pytest.approx(live_peak(model, rows), rel=0.15)


def counted_model(mode: str) -> tuple[nn.Module, Architecture]:
    """A checkpointed model of six layers, and what a plan counts of it."""
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "head_dim": 32}
    model = tiny_model("llama", num_hidden_layers=6, **sizes).train()
    architecture = measure(model.config, ModelSettings())
    apply_checkpointing(model, mode)
    return model, architecture


def planned(architecture: Architecture, rows: Rows, mode: str) -> float:
    """Bytes of checkpoints, gradients and transients that a plan says."""
    job = Job(rows, Precision(), optimizer_slots=0)
    memory = predict(architecture, job, Strategy(levers=Levers(mode)), CPU)
    return memory.gradients + memory.checkpoints + memory.transient


def test_a_plan_reads_more_and_neither_tiles_nor_shards():
    words = ("model=llama3_8b", "method=logo", "rows.prompt=30000", "rows.rejected=2", "model.lora.r=16")
    shared, own = plan(*words, "gpus.count=8"), plan(*words, "gpus.count=8", "model.attention=library")
    assert (shared.job.rows.tokens, own.job.rows.tokens) == (30000 + 3 * 512, 3 * 30512)
    assert own.given.time.total > 2 * shared.given.time.total
    assert own.best is not None
    assert (own.best.strategy.degree, own.best.strategy.levers.mlp_chunk) == (1, None)
    assert own.plain.memory.total == shared.plain.memory.total


def test_a_model_without_attention_is_counted():
    """Mamba: no pairs, no sharing among processes, and its memory from one layer."""
    sizes = measure(MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=64), ModelSettings())
    assert (sizes.query_widths, sizes.attending, sizes.one_process) == ((0, 0, 0), 0, True)
    job = Job(as_read(Rows(1000, (100, 50)), "library"), Precision())
    assert predict(sizes, job, Strategy(levers=Levers("full")), CPU).transient > 1100 * 64 * 4
    assert step_time(sizes, job, Strategy(), CPU).exchange_bytes == 0


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(UnknownModelError, match="mine models are not the library's own"):
        measure(type("Mine", (PreTrainedConfig,), {"model_type": "mine"})(), ModelSettings())


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("blt", "blt models do not say how many layers they have"),
        (
            "lfm2_moe",
            r"No Lfm2MoeForCausalLM can be made of this configuration \(.*\): look at the config.json of",
        ),
    ],
)
def test_a_configuration_that_no_model_can_be_made_of_is_no_defect_of_ours(kind, sentence):
    with pytest.raises(UnknownModelError, match=sentence):
        measure(CONFIG_MAPPING[kind](), ModelSettings())
