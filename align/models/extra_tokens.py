"""`model.extra_tokens`: tokens that a model does not know yet, and their rows in its embedding and head.

They are ordinary tokens and not special ones: where a row's text says `[IND]`, it is one token, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.core.telling import tell
from align.models.text_part import text_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

KEY = "model.extra_tokens"
LONGEST = 64  # characters of a token
_MANY_TABLES = "vocab_size_per_layer_input"  # of a model with an embedding in each layer


def check_extra_tokens(tokens: Sequence[str], *, key: str = KEY) -> None:
    """Refuses what is no token that could stand in a text; loads nothing. `key` named it.

    Raises:
        UserError: an empty text, white space or a character that is not printed, a very long one, or one named twice.
    """
    for token in tokens:
        if not token or not token.isprintable() or any(character.isspace() for character in token):
            raise UserError(
                f"{key} names {token!r}: a token is a text without white space and without characters that are not "
                "printed, like '[IND]'."
            )
        if len(token) > LONGEST:
            raise UserError(
                f"{key} names a token of {len(token)} characters: at most {LONGEST}, like '[IND]'."
            )
    twice = sorted({token for token in tokens if tokens.count(token) > 1})
    if twice:
        raise UserError(f"{key} names {twice[0]!r} twice: name it once.")


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, path: str) -> list[int]:
    """Adds the tokens to a tokenizer, in place, behind all that it has.

    Args:
        tokenizer: of the model at `path`.
        tokens: that are new to it.
        path: for messages.

    Returns:
        Their ids, in order.

    Raises:
        UserError: the tokenizer has one of them already.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known:
            raise UserError(
                f"{KEY} names {token!r}, which the tokenizer of {path} has already (id {known[token]}), so that its "
                "rows are there: leave it out."
            )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    extended = tokenizer.get_vocab()
    return [int(extended[token]) for token in tokens]


def extend_config(config: PreTrainedConfig, ids: Sequence[int]) -> None:
    """The vocabulary that a configuration states, in place, with rows for these ids.

    Many models have more rows than tokens (Qwen2.5-7B 152,064 for 151,665), and then state the same as before.

    Raises:
        UserError: the model has an embedding in every layer, none of which would know the ids.
    """
    text: Any = text_config(config)
    if getattr(text, _MANY_TABLES, None):
        raise UserError(
            f"{KEY}: a model of the type {config.model_type} has an embedding in every layer beside its first one, "
            "which is not lengthened here: leave it empty."
        )
    text.vocab_size = max(text.vocab_size, max(ids) + 1)


def add_rows(model: PreTrainedModel, ids: Sequence[int], *, known: int) -> None:
    """Rows for new ids in embedding and head, each the mean of those of all earlier tokens.

    So a model has the same rows wherever it is loaded: transformers' own initialisation draws around the mean. Rows
    that a padded vocabulary has already, and nobody has trained, are set to the mean too. With the rows [1, 0], [3, 2]
    and a third one of padding, the ids [2, 3] make [1, 0], [3, 2], [2, 1], [2, 1].

    Args:
        model: as its checkpoint has it.
        ids: the new ones.
        known: how many tokens the tokenizer had before: 2 in the example.
    """
    import torch

    embedding = _tables(model)[0]
    before = int(getattr(embedding, "ds_shape", embedding.shape)[0])  # ZeRO-3 keeps a part, of another shape
    rows = max(before, max(ids) + 1)
    if rows > before:
        model.resize_token_embeddings(rows, mean_resizing=False)
    new = sorted({*ids, *range(before, rows)})
    with torch.no_grad(), _whole(_tables(model)) as tables:
        for table in tables:
            # In fp64, so that it is the same number on every device.
            table[new] = table[: min(known, before)].mean(0, dtype=torch.float64).to(table.dtype)


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """Everything with a row for each token: embedding, head where it is not the same, and the head's bias."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tables = [embedding.weight]
    if head is not None and head.weight is not embedding.weight:
        tables.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    return tables


@contextmanager
def _whole(tables: list[Tensor]) -> Iterator[list[Tensor]]:
    """Within it a table that ZeRO-3 has split among processes is whole in each."""
    if not any(hasattr(table, "ds_id") for table in tables):
        yield tables
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(tables, modifier_rank=0):
        yield tables


def say_of_extra_tokens(policy: Any, tokens: Sequence[str]) -> None:
    """Says in a line where rows that were added do not train."""
    if tokens and not any(weight.requires_grad for weight in policy.get_input_embeddings().parameters()):
        named = ",".join(f"'{token}'" for token in tokens)
        tell(
            f"{KEY}: their rows stay at the mean of all others, since the embedding does not train: set "
            f'"adapter.train_tokens=[{named}]" with adapter=lora, or adapter.modules_to_save=[embed_tokens].'
        )
