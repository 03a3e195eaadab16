"""Pre-tokenised rows as LOGO and LongPO released them, made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align.core.errors import UserError
from align.data.released import is_released, read_released
from align.longseq import ATTENTION, pack, pair_logps
from tests.tiny import tiny_model

N = -100


def logo_row(**changes: Any) -> dict[str, Any]:
    """Prompt 5 6 7 at positions 0 4 9; answers 8 9, 3 9 and 4 4 9; the second rejected row is padded by two."""
    row = {
        "chosen_input_ids": [5, 6, 7, 8, 9],
        "chosen_attention_mask": [1] * 5,
        "chosen_position_ids": [0, 4, 9, 10, 11],
        "chosen_labels": [N, N, N, 8, 9],
        "reject_1_input_ids": [5, 6, 7, 3, 9],
        "reject_1_attention_mask": [1] * 5,
        "reject_1_position_ids": [0, 4, 9, 10, 11],
        "reject_1_labels": [N, N, N, 3, 9],
        "reject_2_input_ids": [5, 6, 7, 4, 4, 9, 0, 0],
        "reject_2_attention_mask": [1] * 6 + [0] * 2,
        "reject_2_position_ids": [0, 4, 9, 10, 11, 12, 0, 0],
        "reject_2_labels": [N, N, N, 4, 4, 9, 0, 0],
    }
    return row | changes


def test_logo_rows_share_the_prompt_and_keep_their_positions() -> None:
    assert is_released(logo_row())
    example = read_released("d/train:1", logo_row())
    assert example.prompt_ids.tolist() == [5, 6, 7]
    assert example.position_ids.tolist() == [0, 4, 9]
    assert [answer.input_ids.tolist() for answer in example.answers] == [[8, 9], [3, 9], [4, 4, 9]]
    assert all(answer.scored.all() for answer in example.answers)
    assert example.chunk_spans == () and example.short == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reject_1_input_ids": [5, 1, 7, 3, 9]}, "column reject_1_input_ids does not share the prompt"),
        ({"reject_1_labels": [N, N, N, N, 9]}, "column reject_1_input_ids does not share the prompt"),
        ({"reject_1_position_ids": [0, 5, 9, 10, 11]}, "column reject_1_position_ids does not share"),
        ({"chosen_position_ids": [0, 4, 9, 10, 12]}, "chosen_position_ids jumps inside the answer"),
        ({"chosen_position_ids": [0, 4, 9, 12, 13]}, "chosen_position_ids jumps inside the answer"),
        ({"chosen_labels": [N] * 5}, "chosen_labels marks no answer"),
        ({"chosen_labels": [5, 6, 7, 8, 9]}, "chosen_labels leaves no prompt"),
        ({"chosen_labels": [N, N, N, 8, 8]}, "chosen_labels differs from chosen_input_ids"),
        ({"chosen_labels": [N, N, N, 8]}, "chosen_labels has 4 entries, chosen_input_ids 5"),
        ({"chosen_labels": "text"}, "chosen_labels must be a flat list of integers"),
        ({"chosen_input_ids": [[5], [6, 7]]}, "chosen_input_ids must be a flat list of integers"),
        ({"chosen_attention_mask": [0, 1, 1, 1, 1]}, "does not share the prompt"),
        ({"chosen_input_ids": [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]]}, "chosen_input_ids must be a flat list of"),
        ({"chosen_labels": None}, "column chosen_labels is missing"),
    ],
)
def test_bad_released_rows_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^d/train:1: .*{sentence}"):
        read_released("d/train:1", logo_row(**changes))


def padded_in_chunks() -> dict[str, Any]:
    """As LOGO's builder writes rows: each chunk of context is padded on its right, with id, mask and position 0."""
    prompt, mask, at = [5, 6, 0, 7, 0, 0, 8], [1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 30, 0, 0, 61]
    row = {}
    for name, answer in (("chosen", [9, 3]), ("reject_1", [4, 4, 3])):
        after = [62 + i for i in range(len(answer))]
        row |= {
            f"{name}_input_ids": [*prompt, *answer],
            f"{name}_attention_mask": [*mask, *[1] * len(answer)],
            f"{name}_position_ids": [*at, *after],
            f"{name}_labels": [*[N] * len(prompt), *answer],
        }
    return row


def test_rows_padded_in_each_chunk_are_read_without_the_padding() -> None:
    example = read_released("d/train:1", padded_in_chunks())
    assert example.prompt_ids.tolist() == [5, 6, 7, 8]
    assert example.position_ids.tolist() == [0, 1, 30, 61]
    assert [answer.input_ids.tolist() for answer in example.answers] == [[9, 3], [4, 4, 3]]


def test_leaving_hidden_tokens_out_changes_no_logit() -> None:
    """The library's own forward over the padded row with its mask, against ours over what was read; fp64."""
    row = padded_in_chunks()
    model = tiny_model().double()
    columns = ("input_ids", "attention_mask", "position_ids")
    ids, mask, positions = (torch.tensor([row[f"chosen_{name}"]]) for name in columns)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        plain = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)[-2:].sum()
        model.set_attn_implementation(ATTENTION)
        ours = pair_logps(model, pack([read_released("d/train:1", row)]))
    torch.testing.assert_close(ours.chosen[0], plain, rtol=1e-12, atol=0)


def test_positions_that_do_not_increase_are_named() -> None:
    changes = {f"{name}_position_ids": [0, 0, 9, 10, 11] for name in ("chosen", "reject_1")}
    changes["reject_2_position_ids"] = [0, 0, 9, 10, 11, 12, 0, 0]
    with pytest.raises(UserError, match="chosen_position_ids must increase strictly"):
        read_released("d/train:1", logo_row(**changes))


def test_longpo_rows_carry_a_short_row_a_turn() -> None:
    """Two turns: the policy's rows score both answers (8 and 9, or 3 and 4); the reference sees two short rows."""
    row = {
        "chosen_input_ids": [5, 6, 7, 8, 2, 9],
        "chosen_labels": [N, N, N, 8, N, 9],
        "rejected_input_ids": [5, 6, 7, 3, 2, 4],
        "rejected_labels": [N, N, N, 3, N, 4],
        "ref_chosen_input_ids": [[6, 8, 0], [7, 2, 9]],
        "ref_chosen_attention_mask": [[1, 1, 0], [1, 1, 1]],
        "ref_chosen_labels": [[N, 8, N], [N, N, 9]],
        "ref_rejected_input_ids": [[6, 3, 0], [7, 2, 4]],
        "ref_rejected_attention_mask": [[1, 1, 0], [1, 1, 1]],
        "ref_rejected_labels": [[N, 3, N], [N, N, 4]],
    }
    example = read_released("d/train:1", row)
    assert example.prompt_ids.tolist() == [5, 6, 7] and example.position_ids.tolist() == [0, 1, 2]
    assert [answer.scored.tolist() for answer in example.answers] == [[True, False, True]] * 2
    assert [short.prompt_ids.tolist() for short in example.short] == [[6], [7, 2]]
    answers = [[answer.input_ids.tolist() for answer in short.answers] for short in example.short]
    assert answers == [[[8], [3]], [[9], [4]]]
    with pytest.raises(UserError, match="must be lists with one row a turn"):
        read_released("d/train:1", row | {"ref_rejected_labels": [[N, 3, N]]})
    # LongPO's own script writes the long columns as a list of one row.
    nested = {name: [values] for name, values in row.items() if not name.startswith("ref_")}
    again = read_released("d/train:1", row | nested)
    assert again.prompt_ids.tolist() == example.prompt_ids.tolist()
    assert [a.input_ids.tolist() for a in again.answers] == [a.input_ids.tolist() for a in example.answers]
