"""What a reference log-prob depends on, as keys: the model that gives it and the row that it reads.

identity = Identity.of(settings, precision=Precision(), cache=folder)   # hashes weights once, then remembers
keys = row_keys(batch.rows[0], identity)                        # one key a prompt, whatever it is packed with

In a key: the bytes of the weights, the configuration (RoPE included), dtypes, attention, quantisation; token
ids, positions, which tokens each answer scores and, where they have any, their weights, and whether the method cuts
pairs to one length (`needs.fronts`). Tokenizer, chat template and cuts act through the token ids.
Not in a key, since they change no value: the loss and its settings, the optimiser, batch size, packing, the
number of processes. These change at most the order of additions, so a cached value is the live one up to the
rounding of the dtype, and exactly the live one where rows are packed alike. The scope (the long or the short
context) is not named either: it decides which rows are read, and a row has one value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from align.models.identity import Identity, content_digest

if TYPE_CHECKING:
    from align.longseq.shared_prefix import SharedPrefixRow


_FRONTS = 1  # marks an entry that has the sums of pairs cut to one length


def row_keys(row: SharedPrefixRow, identity: Identity) -> list[str]:
    """One key a prompt, `[b]`: the same wherever it lies in the row and whatever lies beside it.

    So that it is, places are counted from the prompt's start: a prompt at 500 … 509 of its row with an answer at 510 …
    512 has the key of one at 0 … 9 with an answer at 10 … 12.
    """
    host = row.host
    ids, positions = host.input_ids[0].numpy(), host.position_ids[0].numpy()
    predictor, answer = host.predictor.numpy(), host.answer.numpy()
    slots = row.lengths.shape[1]
    # Scored tokens by prompt, in their order within each: one sorting, however many prompts there are.
    order = np.argsort(answer // slots, kind="stable")
    bounds = np.searchsorted((answer // slots)[order], np.arange(len(row.layout.prompts) + 1))
    model = identity.digest
    if identity.row_length_matters:
        model = f"{model} {positions.max()}"
    keys = []
    for b, packed in enumerate(row.layout.prompts):
        start = packed.prompt[0]
        edges = [packed.prompt[1], *(stop for _, stop in packed.answers)]
        mine = order[bounds[b] : bounds[b + 1]]
        content = (
            np.array(edges) - start,
            ids[start : edges[-1]],
            positions[start : edges[-1]],
            predictor[mine] - start,
            answer[mine] % slots,
            *([host.weight.numpy()[mine]] if len(host.weight) else ()),
            *([np.array([_FRONTS])] if row.cuts.shape[1] else ()),
        )
        keys.append(content_digest(model, content))
    return keys
