"""What the library's attention is said to cost, and what is refused with it before anything is read."""

from __future__ import annotations

import hydra
import pytest

from align.core.errors import UserError
from align.data.dataset import load_preference_data
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example
from align.longseq import pack
from align.longseq.own_rows import own_row_tokens
from align.training.row_costs import attention_notice
from align.training.settings import read_settings
from tests.rows import make_rows
from tests.tiny import tiny_tokenizer


def test_the_line_counts_the_rows_that_are_read(tmp_path):
    rows = make_rows(tmp_path / "rows.jsonl")
    data = load_preference_data(
        DataSettings(path=str(rows), eval_size=2), tiny_tokenizer(), positions=PositionSettings(), seed=0
    )
    batch = pack([to_example(row) for row in data.train])
    own, shared = own_row_tokens(batch), batch.num_tokens
    assert own > 2 * shared
    assert attention_notice(data, "sdpa") == []
    assert attention_notice(data, "library") == [
        f"model.attention=library reads a row for each answer: {own} tokens an epoch, {own / shared:.2f} × the "
        f"{shared} that rows with a shared prompt would take."
    ]
    longest = max(to_example(row).num_tokens for row in data.train)
    (said,) = attention_notice(data, "masked")
    assert said.endswith(
        f": {longest**2} pairs in a mask for the longest prompt with its answers, of {longest} tokens."
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["parallel=gather", "parallel.degree=2"], "parallel.degree=2 shares a row between processes"),
        (["memory.mlp_chunk=64"], "memory.mlp_chunk=64 cuts layers at our attention"),
    ],
)
@pytest.mark.parametrize("command", ["train", "verify", "plan"])
@pytest.mark.parametrize("attention", ["library", "masked"])
def test_what_the_librarys_attention_does_without_is_refused(attention, command, words, sentence):
    from align import plan, verify

    check = {"train": read_settings, "verify": verify.check, "plan": plan.check}[command]
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        config = hydra.compose(command, [f"model.attention={attention}", *words])
    with pytest.raises(UserError, match=sentence):
        check(config)
