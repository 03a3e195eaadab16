"""The cache of reference log-probs: what decides on a key, what a disk or a kill can do, cached equals live."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.adapters.lora import Lora
from align.core.errors import UserError
from align.data.examples import Answer
from align.longseq import pack, pair_logps
from align.models.identity import Identity, file_hash, weights_fingerprint
from align.models.precision import Precision
from align.models.settings import ModelSettings, RopeSettings
from align.reference.cache import IDLE_AT_ONCE, QUIET, Cached, LogpStore, check_folder
from align.reference.key import row_keys
from align.reference.sources import Frozen
from losses import dpo_loss
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, gradients, make_example
from tests.reference.helpers import forwardable, refuse
from tests.tiny import tiny_model

SOMEBODY = Identity({"model": "somebody"})


def some_examples(count: int = 4, seed: int = 0):
    """Rows of unlike sizes and numbers of answers; the first has a branch that is not scored throughout."""
    rng = np.random.default_rng(seed)
    examples = [
        make_example(rng, prompt=int(rng.integers(4, 20)), answers=rng.integers(1, 8, 2 + i % 2))
        for i in range(count)
    ]
    turns = Answer(rng.integers(4, 128, 6), np.array([True, True, False, False, True, True]))
    return [replace(examples[0], answers=(turns, *examples[0].answers[1:])), *examples[1:]]


def keys_of(examples, tokens_per_row=None, identity=SOMEBODY):
    batch = pack(examples, tokens_per_row=tokens_per_row)
    return [key for row in batch.rows for key in row_keys(row, identity)]


# ---- keys


@pytest.mark.parametrize("tokens_per_row", [None, 1, 40])
def test_a_rows_key_does_not_depend_on_its_neighbours(tokens_per_row):
    """Alone, packed with others, in another order, beside rows with more answers: the same key."""
    examples = some_examples(5)
    alone = [keys_of([example])[0] for example in examples]
    assert len(set(alone)) == 5
    assert keys_of(examples, tokens_per_row) == alone
    assert keys_of(examples[::-1], tokens_per_row) == alone[::-1]


def changed_rows():
    """What changes a value, each applied to one row."""
    [row] = some_examples(1)
    chosen, *others = row.answers
    moved = row.position_ids.copy()
    moved[-1] += 1

    def with_chosen(ids, scored):
        return replace(row, answers=(Answer(ids, scored), *others))

    return {
        "prompt id": replace(row, prompt_ids=np.r_[row.prompt_ids[:-1], 5]),
        "position": replace(row, position_ids=moved),
        "step of positions": replace(row, position_step=2),
        "positions of a document": replace(
            row,
            answers=(
                replace(chosen, positions=row.position_ids[-1] + 2 + np.arange(len(chosen.input_ids))),
                *others,
            ),
        ),
        "answer id": with_chosen(np.r_[chosen.input_ids[:-1], 5], chosen.scored),
        "scored tokens": with_chosen(chosen.input_ids, ~chosen.scored),
        "answers in another order": replace(row, answers=(others[0], chosen)),
        "answer left out": replace(row, answers=(chosen,)),
        "last prompt token becomes the answer's first": replace(
            row,
            prompt_ids=row.prompt_ids[:-1],
            position_ids=row.position_ids[:-1],
            answers=(
                Answer(np.r_[row.prompt_ids[-1:], chosen.input_ids], np.r_[False, chosen.scored]),
                *others,
            ),
        ),
    }


@pytest.mark.parametrize("change", changed_rows())
def test_a_rows_key_changes_with_whatever_changes_its_value(change):
    assert keys_of([changed_rows()[change]]) != keys_of(some_examples(1))


def test_longrope_rows_are_keyed_by_the_longest_position_of_the_packed_row():
    short, long = some_examples(1)[0], make_example(np.random.default_rng(1), prompt=60, answers=[3, 3])
    identity = replace(SOMEBODY, row_length_matters=True)
    assert keys_of([short], identity=identity)[0] != keys_of([short, long], identity=identity)[0]
    assert keys_of([short], identity=identity)[0] == keys_of([short, short], identity=identity)[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    return path


def digest(folder: Path, cache: Path, *, autocast=None, **settings) -> str:
    return Identity.of(
        ModelSettings(path=str(folder), **settings), precision=Precision(autocast=autocast), cache=cache
    ).digest


def test_identity_is_the_function_and_not_where_it_lies(folder, tmp_path):
    """A copy elsewhere and settings that do not reach the reference are the same reference."""
    cache = tmp_path / "cache"
    known = digest(folder, cache)
    copy = tmp_path / "copy"
    tiny_model().save_pretrained(copy)
    assert digest(copy, cache) == known
    assert digest(folder, tmp_path / "other") == known
    assert digest(folder, cache, adapter=Lora(r=8)) == known
    assert digest(folder, cache, rope=RopeSettings(theta=10_000.0)) == known  # what the checkpoint has
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "use_cache": False}))
    assert digest(copy, cache) == known


def test_identity_changes_with_weights_rope_dtype_autocast_and_attention(folder, tmp_path):
    cache = tmp_path / "cache"
    digests = [
        digest(folder, cache),
        digest(folder, cache, rope=RopeSettings(theta=1e6)),
        digest(folder, cache, rope=RopeSettings(type="linear", factor=2.0)),
        digest(folder, cache, dtype="bfloat16"),
        digest(folder, cache, autocast=torch.bfloat16),
        digest(folder, cache, attention="flash2"),
        digest(folder, cache, quantization="nf4"),
    ]
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    digests.append(digest(folder, cache))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    digests.append(digest(folder, cache))
    assert len(set(digests)) == len(digests)


def test_weights_are_hashed_once_and_again_when_the_file_changed(folder, tmp_path, monkeypatch):
    """Also where the size is the same and the time of the content was set back."""
    path, cache = folder / "model.safetensors", tmp_path / "cache"
    first = file_hash(path, cache)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: refuse())
        assert file_hash(path, cache) == first
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = file_hash(path, cache)
    assert second != first
    for note in (cache / "files").iterdir():
        note.write_text("{")
    assert file_hash(path, cache) == second


def test_a_hub_model_is_its_commit(tmp_path):
    settings, config = ModelSettings(path="owner/name"), tiny_model().config
    with pytest.raises(UserError, match="which commit of owner/name"):
        weights_fingerprint(settings, config, tmp_path)
    config._commit_hash = "abc"
    assert weights_fingerprint(settings, config, tmp_path) == "commit abc"


def test_an_adapter_is_keyed_with_the_model_below_it(folder, tmp_path):
    """A folder of another adapter over the same base, and of the same adapter over another base."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    settings, config = ModelSettings(path=str(adapter)), tiny_model().config
    (adapter / "config.json").write_text("{}")
    seen = []
    for adapter_seed, base_seed in ((0, 0), (1, 0), (1, 1)):
        save_file({"lora_A": torch.full((2,), float(adapter_seed))}, adapter / "adapter_model.safetensors")
        tiny_model(seed=base_seed).save_pretrained(folder)
        seen.append(weights_fingerprint(settings, config, tmp_path / "cache"))
    assert len(set(seen)) == 3


def test_folder_without_weights_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="finds no weights"):
        digest(folder, tmp_path)


# ---- the store


def test_numbers_read_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        f"{i:032x}": tuple(map(float, rng.normal(0, 10.0 ** rng.integers(-8, 8), 3))) for i in range(50)
    }
    LogpStore(tmp_path).add(values)
    store = LogpStore(tmp_path)
    assert {key: store.get(key) for key in values} == values
    assert store.get("0") is None


def test_damage_is_found_named_and_computed_again(tmp_path, caplog):
    """One digit of a number, one letter of a key, a line that is no JSON: the other entries stay."""
    store = LogpStore(tmp_path)
    store.add({f"key{i}": (-float(i), -2.5) for i in range(5)})
    [segment] = store.folder.glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"-1.0", b"-1.5")
    lines[2] = lines[2].replace(b"key2", b"keyX")
    lines[3] = b"\xff\x00" + lines[3][2:]
    segment.write_bytes(b"".join(lines))
    with caplog.at_level(logging.WARNING):
        damaged = LogpStore(tmp_path)
    assert len(damaged) == 2
    assert [damaged.get(f"key{i}") for i in (1, 2, 3)] == [None] * 3
    assert f"{segment} is damaged in line 2, 3, 4" in caplog.text
    damaged.add({f"key{i}": (-float(i), -2.5) for i in (1, 2, 3)})
    assert LogpStore(tmp_path).get("key2") == (-2.0, -2.5)


def test_a_half_written_line_is_no_entry_and_no_damage(tmp_path, caplog):
    store = LogpStore(tmp_path)
    store.add({"one": (-1.0,), "two": (-2.0,)})
    [segment] = store.folder.glob("*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-5])
    late = LogpStore(tmp_path)
    assert (late.get("one"), late.get("two")) == ((-1.0,), None)
    segment.write_bytes(whole)  # the writer was alive and goes on
    late.refresh()
    assert late.get("two") == (-2.0,)
    assert not caplog.records


def write_entries(folder: Path, writer: int, count: int, pause: float) -> None:
    store = LogpStore(folder)
    for i in range(count):
        store.add({f"{writer}-{i}": (float(writer), float(i))})
        time.sleep(pause)


def test_two_processes_fill_at_once_and_one_may_be_killed(tmp_path):
    """Nothing of the survivor's is lost or damaged, and what the killed one had finished stays."""
    context = multiprocessing.get_context("fork")
    survivor = context.Process(target=write_entries, args=(tmp_path, 0, 400, 0.0))
    victim = context.Process(target=write_entries, args=(tmp_path, 1, 100_000, 0.001))
    survivor.start()
    victim.start()
    store = LogpStore(tmp_path)
    deadline = time.monotonic() + 60
    while store.get("1-20") is None and time.monotonic() < deadline:
        time.sleep(0.01)
        store.refresh()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    survivor.join()
    assert survivor.exitcode == 0
    last = LogpStore(tmp_path)
    assert all(last.get(f"0-{i}") == (0.0, float(i)) for i in range(400))
    assert all(last.get(f"1-{i}") == (1.0, float(i)) for i in range(21))


def test_segments_of_ended_runs_are_looked_at_by_turns(tmp_path, monkeypatch):
    """300 of them: a few at a time once they are quiet, and what a late one gains is found within one round."""
    folder = tmp_path / "logps"
    folder.mkdir()
    line = LogpStore(tmp_path / "other")
    line.add({"late": (1.5, 2.5)})
    late = next((tmp_path / "other" / "logps").iterdir()).read_bytes()
    for i in range(300):
        (folder / f"{i:03}.jsonl").write_bytes(b"")
    monkeypatch.setattr("align.reference.cache.SETTLED", -1.0)
    store = LogpStore(tmp_path)
    looked: list[Path] = []
    take_in = LogpStore._take_in
    monkeypatch.setattr(
        LogpStore, "_take_in", lambda self, path: (looked.append(path), take_in(self, path))[1]
    )
    for _ in range(QUIET):
        store.refresh()
    looked.clear()
    store.refresh()
    assert len(looked) == IDLE_AT_ONCE
    (folder / "250.jsonl").write_bytes(late)
    (folder / "other.jsonl").write_bytes(
        late.replace(b"late", b"none")
    )  # damaged: its check is another key's
    rounds = 0
    while store.get("late") is None:
        store.refresh()
        rounds += 1
    assert rounds <= 300 // IDLE_AT_ONCE + 1
    assert folder / "other.jsonl" in looked[: 2 * IDLE_AT_ONCE]  # a new one at once


def test_a_cache_that_is_cleared_meanwhile_is_no_error(tmp_path):
    first, second = LogpStore(tmp_path), LogpStore(tmp_path)
    first.add({"a": (1.0,)})
    second.refresh()
    next((tmp_path / "logps").glob("*.jsonl")).unlink()
    second.refresh()
    assert second.get("a") == (1.0,)


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"reference\.cache=.*file cannot be used"):
        check_folder(tmp_path / "file")


# ---- cached equals live


def cached(folder, model=None, identity=SOMEBODY) -> Cached:
    """A reference behind a cache; without a model it must not be asked."""
    live = Frozen(refuse if model is None else lambda: model, pair_logps)
    return Cached(live, LogpStore(folder), identity)


def assert_same(one, two, tolerance: float = 0.0) -> None:
    for name in ("chosen", "rejected", "chosen_length", "rejected_length"):
        left, right = getattr(one, name), getattr(two, name)
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cached_values_are_the_live_ones(tmp_path, dtype):
    """Bit for bit with the same packing, also for prompts with fewer answers; 1e-6 in any other packing."""
    model = forwardable().to(dtype)
    examples = some_examples(6)
    batch = pack(examples, tokens_per_row=50)
    live = Frozen(lambda: model, pair_logps)(model, batch)
    assert_same(cached(tmp_path, model)(model, batch), live)
    assert_same(cached(tmp_path)(model, batch), live)
    if dtype is torch.bfloat16:
        return  # its rounding depends on the packing, live or cached
    for tokens_per_row in (None, 1):
        other = pack(examples, tokens_per_row=tokens_per_row)
        again = cached(tmp_path)(model, other)
        assert_same(again, Frozen(lambda: model, pair_logps)(model, other), tolerance=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_a_sweep_over_beta_never_runs_the_reference_again(tmp_path, beta):
    """Loss and every gradient equal the live ones, from a reference that raises when it is loaded."""
    reference, policy = forwardable(seed=1), forwardable()
    batch = pack(some_examples(4), tokens_per_row=50)
    expected = Frozen(lambda: reference, pair_logps)(policy, batch)
    cached(tmp_path, reference)(policy, batch)
    losses = [
        dpo_loss(pair_logps(policy, batch), logps, beta=beta).loss.mean()
        for logps in (cached(tmp_path)(policy, batch), expected)
    ]
    assert torch.equal(*losses)
    assert_close(gradients(policy, losses[0]), gradients(policy, losses[1]), tolerance=1e-6)


def test_only_packed_rows_with_a_new_prompt_are_read(tmp_path):
    """Three prompts a row each, one known: the reference reads the tokens of the other two."""
    model, examples = forwardable(), some_examples(3)
    cached(tmp_path, model)(model, pack(examples[:1]))
    reference = cached(tmp_path, model)
    reference(model, pack(examples, tokens_per_row=1))
    assert reference.usage.tokens == examples[1].num_tokens + examples[2].num_tokens
    assert reference.usage.cached == 1
    reference(model, pack(examples))
    assert reference.usage.tokens == examples[1].num_tokens + examples[2].num_tokens
    assert reference.usage.cached == 4


def test_what_another_process_has_written_meanwhile_counts(tmp_path):
    model, batch = forwardable(), pack(some_examples(2))
    late = cached(tmp_path)  # would raise if it had to compute
    cached(tmp_path, model)(model, batch)
    late(model, batch)
    assert late.usage.cached == 2


def test_another_identity_does_not_answer(tmp_path):
    one, two = forwardable(seed=0), forwardable(seed=1)
    batch = pack(some_examples(2))
    cached(tmp_path, one)(one, batch)
    values = cached(tmp_path, two, identity=Identity({"model": "somebody else"}))(two, batch)
    assert_same(values, Frozen(lambda: two, pair_logps)(two, batch))


def test_values_that_are_not_finite_are_not_kept(tmp_path, caplog):
    """A reference that overflows is asked again, and the loss sees what it says."""
    model, batch = forwardable(), pack(some_examples(2))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    reference = cached(tmp_path, model)
    assert reference(model, batch).chosen.isnan().all()
    assert len(LogpStore(tmp_path)) == 0
    assert "2 rows a log-prob that is not finite" in caplog.text


def unequal_caches(rank: int, size: int, folder: Path) -> tuple[int, int, list[float]]:
    """Rank 0 finds its rows, rank 1 does not: both run, since the forward of a wrapped model is collective."""
    torch.set_grad_enabled(False)
    model = forwardable()
    batch = pack(some_examples(2, seed=rank))
    calls = []

    def forward(policy, batch):
        total = torch.ones(())
        torch.distributed.all_reduce(total)  # stands for a wrapper's collectives
        calls.append(int(total))
        return pair_logps(policy, batch)

    store = LogpStore(folder / str(rank))
    reference = Cached(Frozen(lambda: model, forward), store, SOMEBODY)
    if rank == 0:
        keys = keys_of(some_examples(2, seed=0))
        store.add(dict.fromkeys(keys, (-1.0, -1.0, -1.0)))
    first = reference(model, batch)
    second = reference(model, batch)
    assert len(calls) == 1
    return calls[0], reference.usage.cached, (first.chosen - second.chosen).tolist()


@pytest.mark.slow
def test_processes_meet_in_the_references_collectives(tmp_path):
    zero, one = run_distributed(unequal_caches, 2, tmp_path)
    assert zero[:2] == one[:2] == (2, 2)
    assert one[2] == [0.0, 0.0]


def test_partial_forward_keeps_its_settings(tmp_path):
    """The chunk of vocabulary logits is no part of a key: it changes no value."""
    model, batch = forwardable(), pack(some_examples(2))
    small = Cached(
        Frozen(lambda: model, partial(pair_logps, chunk_size=2)), LogpStore(tmp_path / "small"), SOMEBODY
    )
    assert_same(small(model, batch), cached(tmp_path, model)(model, batch), tolerance=1e-6)
