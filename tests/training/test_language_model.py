"""`method=lm`: every token of text and of rows with answers once, however rows are packed, cut or shared out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import TrainingArguments

import hydra_conf
from align.core.errors import AlignWarning, UserError
from align.data.examples import Answer, TokenizedExample
from align.data.settings import DataSettings
from align.data.text_rows import text_pieces
from align.data.tokens import ExampleTokenizer
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.parallel import SequenceParallel, start_parallel
from align.models.settings import LIBRARY, MASKED
from align.models.structure import set_reading
from align.training.methods import Method, load_method
from align.training.trainer import PreferenceTrainer
from align.training.weighting import prompt_weights
from losses import PairLogps, lm_loss
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, gradients, make_example
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.helpers import make_trainer

CONFIG = Path(hydra_conf.__file__).parent / "method" / "lm.yaml"


def method(**needs: str) -> Method:
    config = OmegaConf.load(CONFIG)
    config.needs.update(needs)
    return load_method(config)


# ---- derived values


def example(prompt: int, answer: int) -> TokenizedExample:
    """A row of `prompt` tokens that can be predicted, behind a first one, and of an answer."""
    return make_example(np.random.default_rng(0), prompt=prompt + 1, answers=[answer])


def step_loss(nats: list[tuple[float, float]], sizes: list[tuple[int, int]], **needs: str) -> float:
    """The loss of a step whose rows have these nats and tokens, of prompt and answer.

    Weights are those of the trainer; `nll` is what the forward makes of such sums.
    """
    chosen = method(**needs)
    batch = pack([example(*size) for size in sizes])
    scored = torch.tensor(sizes, dtype=torch.float64)
    sums = torch.tensor(nats, dtype=torch.float64)
    whole = chosen.needs.nll_scope == "sequence"
    nll = sums.sum(1) / scored.sum(1) if whole else sums[:, 1] / scored[:, 1]
    none = torch.zeros(len(sizes), 0, dtype=torch.float64)
    policy = PairLogps(-sums[:, 1], none, scored[:, 1], none, nll=nll)
    weights = prompt_weights(
        {"batch": batch, "real": torch.ones(len(sizes), dtype=torch.bool)}, chosen.needs.weighting
    )
    return float((weights * chosen.loss(policy, None).loss).sum() / weights.sum())


ANSWERS = {"nll_scope": "chosen", "weighting": "token"}
ROWS = {"nll_scope": "sequence", "weighting": "prompt"}


def test_values_of_one_row():
    """12 prompt tokens of 30 nats, 4 answer tokens of 6: 6 / 4 on the answer, 36 / 16 on both."""
    assert step_loss([(30, 6)], [(12, 4)], **ANSWERS) == pytest.approx(1.5, abs=1e-12)
    assert step_loss([(30, 6)], [(12, 4)]) == pytest.approx(2.25, abs=1e-12)


def test_values_of_two_rows():
    """Beside it 3 tokens of 6 nats and 9 of 18: 24 / 13, 60 / 28, and (36 / 16 + 24 / 12) / 2 by rows."""
    nats, sizes = [(30.0, 6.0), (6.0, 18.0)], [(12, 4), (3, 9)]
    assert step_loss(nats, sizes, **ANSWERS) == pytest.approx(1.84615385, abs=5e-9)
    assert step_loss(nats, sizes) == pytest.approx(2.14285714, abs=5e-9)
    assert step_loss(nats, sizes, **ROWS) == pytest.approx(2.125, abs=1e-12)


def test_without_a_scope_there_is_nothing_to_average():
    with pytest.raises(UserError, match=r"method lm: its loss and its settings do not fit: .*nll_scope"):
        method(nll_scope="none", weighting="prompt")
    with pytest.raises(ValueError, match="nll_scope"):
        lm_loss(PairLogps(*torch.zeros(4, 1, 1)))


# ---- against the library's own loss


def corpus(max_length: int | None) -> list[TokenizedExample]:
    """Four documents of 5 to 37 words as pieces, and two rows with a prompt and an answer."""
    rng, tokenizer = np.random.default_rng(0), tiny_tokenizer()
    tokenize = ExampleTokenizer(tokenizer, DataSettings(max_length=max_length), chunk_tokens=512)
    words = sorted(tokenizer.get_vocab())[8:]
    texts = [" ".join(rng.choice(words, n)) for n in (5, 37, 18, 11)]
    documents = [one for i, text in enumerate(texts) for one in text_pieces(f"a:{i}", text, tokenize)]
    return [*documents, make_example(rng, prompt=9, answers=[4]), make_example(rng, prompt=3, answers=[12])]


def library_loss(model: torch.nn.Module, rows: list[TokenizedExample]) -> Tensor:
    """transformers' causal language-model loss: padded rows, a piece's prompt left out of the labels."""
    lengths = [len(row.prompt_ids) + len(row.answers[0].input_ids) for row in rows]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        tokens = torch.as_tensor(np.concatenate([row.prompt_ids, row.answers[0].input_ids]))
        ids[i, :n], labels[i, :n], mask[i, :n] = tokens, tokens, 1
        if row.piece:
            labels[i, : len(row.prompt_ids)] = -100
    return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def our_loss(
    model: torch.nn.Module,
    rows: list[TokenizedExample],
    *,
    tokens_per_row: int | None = None,
    parallel: SequenceParallel | None = None,
) -> Tensor:
    """The trainer's weighting over `pair_logps`."""
    needs = method().needs
    batch = pack(rows, tokens_per_row=tokens_per_row)
    logps = pair_logps(model, batch, parallel=parallel, nll_scope=needs.nll_scope, chunk_size=8)
    weights = prompt_weights(
        {"batch": batch, "real": torch.ones(len(rows), dtype=torch.bool)}, needs.weighting
    )
    return (weights * lm_loss(logps).loss).sum() / weights.sum()


def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same weights with the library's attention and with ours."""
    ours = tiny_model(initializer_range=0.1)
    ours.set_attn_implementation(ATTENTION)
    return tiny_model(initializer_range=0.1), ours


@pytest.mark.parametrize("tokens_per_row", [None, 1, 40])
@pytest.mark.parametrize("max_length", [None, 8])
def test_loss_and_gradients_are_the_librarys(max_length, tokens_per_row):
    """Whole documents and pieces of 8 tokens, all rows in one pack, one each, several of 40 tokens."""
    plain, shared = models()
    rows = corpus(max_length)
    assert (max(row.piece for row in rows) > 1) == (max_length is not None)
    expected, actual = library_loss(plain, rows), our_loss(shared, rows, tokens_per_row=tokens_per_row)
    torch.testing.assert_close(actual.float(), expected, rtol=1e-6, atol=0)
    assert_close(gradients(shared, actual), gradients(plain, expected))


@pytest.mark.parametrize("reading", [LIBRARY, MASKED])
def test_the_models_own_attention_reads_pieces_alike(reading):
    """`model.attention=library` and `masked`: a piece's prompt is not scored there either."""
    plain, own = models()[0], models()[0]
    set_reading(own, reading)
    expected, actual = library_loss(plain, corpus(8)), our_loss(own, corpus(8), tokens_per_row=40)
    torch.testing.assert_close(actual.float(), expected, rtol=1e-6, atol=0)
    assert_close(gradients(own, actual), gradients(plain, expected))


def test_cutting_scores_as_many_tokens():
    """With one token of context at a piece's beginning no target is lost and none is counted twice."""
    needs = method().needs
    counts = []
    for max_length in (None, 8, 13):
        rows = corpus(max_length)[:-2]
        real = torch.ones(len(rows), dtype=torch.bool)
        counts.append(int(prompt_weights({"batch": pack(rows), "real": real}, needs.weighting).sum()))
    assert counts[0] == counts[1] == counts[2] == sum((5, 37, 18, 11))


def sharded(rank: int, size: int, kind: str) -> dict[str, Tensor]:
    parallel = start_parallel(kind, size)
    _, model = models()
    loss = our_loss(model, corpus(8), tokens_per_row=40, parallel=parallel)
    found = {"loss": loss.detach()[None].float(), **gradients(model, loss)}
    for value in found.values():
        torch.distributed.all_reduce(value)
        value /= size
    return found


@pytest.mark.parametrize("kind", ["gather", "ulysses"])
def test_two_processes_that_share_rows_are_one(kind):
    plain, _ = models()
    loss = library_loss(plain, corpus(8))
    expected = {"loss": loss.detach()[None], **gradients(plain, loss)}
    assert_close(run_distributed(sharded, 2, kind)[0], expected)


# ---- through the trainer


class Corpus(torch.utils.data.Dataset):
    """The corpus in pieces."""

    def __init__(self) -> None:
        self.examples = corpus(8)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.examples[index]


def test_a_step_is_the_mean_over_every_scored_token(tmp_path):
    """One step of all rows in two micro-batches: the library's loss of all of them at once, and of held-out rows."""
    rows = Corpus()
    half = -(-len(rows) // 2)
    trainer = make_trainer(
        tmp_path,
        method=method(),
        max_steps=1,
        per_device_train_batch_size=half,
        gradient_accumulation_steps=2,
    )
    trainer.train_dataset = trainer.eval_dataset = rows
    with torch.no_grad():
        expected = library_loss(models()[0], rows.examples)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-6)
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_a_row_of_several_turns_counts_every_token_once():
    """Later questions stand in the answer, unscored there: the weight is prompt − 1 and the whole branch."""
    scored = np.array([True, True, False, False, True])
    rng = np.random.default_rng(0)
    row = TokenizedExample(
        "a:1", rng.integers(4, 99, 7), np.arange(7), (Answer(rng.integers(4, 99, 5), scored),)
    )
    inputs = {"batch": pack([row]), "real": torch.tensor([True])}
    weight = partial(prompt_weights, inputs)
    assert (weight("sequence").tolist(), weight("token").tolist()) == ([6 + 5], [3])


def test_a_notebooks_rows_of_text(tmp_path):
    """`PreferenceTrainer(method="lm", train_dataset=[{"text": …}])`: documents beside rows with answers."""
    rows = [{"text": " ".join(f"w{i} w{i + 1}" for i in range(start, start + 30))} for start in (8, 20)]
    rows.append({"prompt": "w9 w10", "completion": "w11"})
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1e-2,
        logging_steps=1,
    )
    with pytest.warns(
        AlignWarning, match=r"^train_dataset: 2 documents of plain text are read as 6 rows, 126 tokens"
    ):
        trainer = PreferenceTrainer(
            tiny_model(),
            arguments,
            method="lm",
            train_dataset=rows,
            processing_class=tiny_tokenizer(),
            max_length=25,
        )
    assert len(trainer.train_dataset) == 7
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
