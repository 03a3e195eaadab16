"""What a layer's attention pattern changes in a plan: the pairs that attention works on, and nothing else."""

from __future__ import annotations

import json

import pytest
from transformers import CONFIG_MAPPING

from align.models.settings import ModelSettings
from align.patterns.pattern import FULL, Chunked, Window
from align.planning.architecture import measure
from align.planning.job import Job, Machine, OwnRows, Precision, Rows, Strategy
from align.planning.time import step_time

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4}
MACHINE = Machine("cuda", 1, 1, 80e9, 1e15, 0.5, 1e11, 1e10, 1e12, 1e10, 1e9, 0.0)


def counted(kind: str, **values):
    """The sizes of a tiny model."""
    return measure(CONFIG_MAPPING[kind](**SIZES, vocab_size=128, **values), ModelSettings())


def test_pairs_of_a_pattern():
    """Prompt 10, answers of 4 and 2: 55 + (50 + 23); a window of 3 leaves 27 + (12 + 6); rows of their own 105 + 78."""
    rows = Rows(10, (4, 2), prompts=2)
    assert rows.pairs() == 2 * (55 + 50 + 23)
    assert rows.pairs(Window(3)) == 2 * (27 + 12 + 6)
    assert OwnRows(10, (4, 2)).pairs() == 105 + 78


def test_layers_have_the_patterns_that_the_configuration_names():
    """Five windows and one full layer, as the class has them by itself; chunks; a window of every layer; none."""
    gemma = counted("gemma3_text", sliding_window=512)
    assert gemma.patterns == (*[Window(512)] * 5, FULL)
    assert gemma.to_json()["patterns"] == {"Window(size=512)": 5, "Full()": 1}
    json.dumps(gemma.to_json())
    assert counted("mistral", sliding_window=64).patterns == (Window(64),) * 6
    assert counted("llama").patterns == (FULL,) * 6
    chunks = CONFIG_MAPPING["llama4_text"](attention_chunk_size=32, num_hidden_layers=4)
    from align.patterns.layers import attention_patterns

    assert set(attention_patterns(chunks)) == {Chunked(32), FULL}


def test_a_step_counts_the_pairs_within_the_windows():
    """At 32,768 tokens the two models differ by attention's pairs alone: 3.5 forwards, with keep_attention."""
    windows, full = counted("mistral", sliding_window=512), counted("mistral", sliding_window=None)
    job = Job(Rows(32_768, (512, 512)), Precision(2))
    few, all_ = (step_time(model, job, Strategy(), MACHINE).flops for model in (windows, full))
    pairs = job.rows.pairs() - job.rows.pairs(Window(512))
    assert all_ - few == pytest.approx(3.5 * 4 * 6 * windows.query_width * pairs)
