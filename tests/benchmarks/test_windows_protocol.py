"""The protocol of longer windows: its arms compose, its questions are answered, its tables say what the cells do."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
import torch
import yaml
from rich.console import Console
from transformers import LlamaConfig

import align
from align.core.errors import UserError
from align.models.rope import override_rope
from align.models.settings import RopeSettings
from align.runs.api import compose
from align.training.settings import read_settings
from benchmarks.miniature import tiny
from benchmarks.miniature.__main__ import time_left
from benchmarks.miniature.cells import Cell, Place
from benchmarks.miniature.files import write_lines
from benchmarks.miniature.run import scores_of
from benchmarks.windows_protocol import data, facts, smollm2
from benchmarks.windows_protocol.arms import ARMS, DEPTHS, SETTINGS, frequencies
from benchmarks.windows_protocol.cells import grid
from benchmarks.windows_protocol.pictures import draw, kinds
from benchmarks.windows_protocol.questions import MARGIN, answers, questions
from benchmarks.windows_protocol.reading import Reading, by_position, tokens_of
from benchmarks.windows_protocol.report import accuracy, perplexity, show
from docs.window_tables import NOT_RUN, arms
from docs.window_tables import questions as question_table

CELLS = {cell.id: cell for cell in grid((1, 2))}
PATHS = (
    "output=",
    "data.path=",
    "model.path=",
    "pipeline.documents=",
    "+suite.questions=",
    "+suite.documents=",
)


# ---- arms


@cache
def composed(command: str, words: tuple[str, ...]):
    return compose(command, words)


def commands(cell: Cell, folder):
    """Each `align` command of a cell, without what names a place."""
    for step in cell.steps(cell, Place(folder, folder)):
        module = step.command[2]
        if module.startswith("align."):
            words = (word for word in step.command[3:] if not word.startswith(PATHS))
            yield module.removeprefix("align."), tuple(words)


@pytest.mark.parametrize("part", ["find", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_every_arm_composes(part, tmp_path):
    for name in ARMS[part]:
        cell = next(cell for cell in CELLS.values() if (cell.part, cell.name) == (part, name))
        for command, words in commands(cell, tmp_path):
            config = composed(command, words)
            if command == "train":
                assert read_settings(config).data.eval_size == 0


def test_frequencies_fit_a_model_of_each_setting():
    """`model.rope` of each arm on a configuration with the setting's window, before weights are read."""
    for setting in SETTINGS.values():
        for name, words in frequencies(setting).items():
            if not all(word.startswith("model.rope.") for word in words):
                continue
            values = dict(word.removeprefix("model.rope.").split("=") for word in words)
            config = LlamaConfig(
                max_position_embeddings=setting.window, hidden_size=64, num_attention_heads=2
            )
            before = dict(config.rope_parameters)
            rope = RopeSettings(**{key: yaml.safe_load(value) for key, value in values.items()})
            override_rope(config, rope)
            assert config.rope_parameters != before, name


def test_cells_bring_what_they_need():
    assert CELLS["find/linear_over/seed2"].needs == ("find/linear_long/seed2",)
    assert CELLS["find/yarn/seed1"].needs == ("find/base/seed1",)
    assert not CELLS["smollm2/base"].needs and not CELLS["smollm2/e2/seed1"].needs
    order = list(CELLS)
    assert all(order.index(need) < order.index(cell.id) for cell in CELLS.values() for need in cell.needs)


def test_a_reading_arm_reads_the_other_arms_model_with_its_own_keys(tmp_path):
    place = Place(tmp_path, tmp_path)
    (step,) = CELLS["find/linear_over/seed1"].steps(CELLS["find/linear_over/seed1"], place)
    assert f"model.path={place.folder('find/linear_long/seed1') / 'train' / 'model'}" in step.command
    assert "model.rope.factor=16" in step.command
    trained = CELLS["find/linear_long/seed1"].steps(CELLS["find/linear_long/seed1"], place)
    assert "model.rope.factor=8" in trained[0].command and "model.rope.factor=8" not in trained[1].command


# ---- data


def test_a_fact_stands_where_the_depth_says():
    for depth in DEPTHS:
        words, kind, answer = data.placed(random.Random(1), words=101, depth=depth)
        assert words.index(answer) == round(100 * depth) and answer.startswith(f"f{kind:02}")
        assert sum(word.startswith("f") for word in words) == 8


def test_questions_have_the_lengths_and_depths_of_the_setting():
    asked = list(data.questions("held_out"))
    assert len(asked) == len(SETTINGS["find"].lengths) * len(DEPTHS) * data.QUESTIONS
    assert [row["group"] for row in asked[:: data.QUESTIONS]] == list(
        data.conditions(SETTINGS["find"].lengths)
    )
    assert asked[0]["prompt"] != next(data.questions("dev"))["prompt"]


def test_documents_score_facts_that_were_said_before():
    document = next(data.documents("held_out"))
    pieces = document["pieces"]
    said = set(pieces[0]["text"].split())
    assert {piece["text"] for piece in pieces if piece["scored"]} <= said
    assert 1000 < sum(len(piece["text"].split()) for piece in pieces) <= 1024


def test_short_and_long_rows_have_the_same_tokens():
    totals = {}
    for kind in ("short", "long"):
        rows = list(data.rows(1, kind))
        words = sum(len(" ".join(row["context"]).split()) + 12 for row in rows)
        totals[kind] = words / SETTINGS["find"].budget
    assert all(0.99 < share <= 1 for share in totals.values())
    texts = [len(row["text"].split()) + 1 for row in data.texts(1)]
    assert 0.99 < sum(texts) / SETTINGS["find"].budget <= 1


def test_facts_stand_from_the_beginning_to_the_end():
    text = "One two three. Four five six! Seven eight nine? Ten."
    needles = [facts.draw(kind, random.Random(0), "held_out") for kind in facts.KINDS[:3]]
    found = smollm2.hidden(text, needles)
    places = [found.index(needle.sentence) for needle in needles]
    assert places == sorted(places) and places[0] == 0
    assert found.rstrip().endswith(needles[-1].sentence)


@pytest.mark.parametrize("kind", facts.KINDS, ids=lambda kind: kind.question)
def test_facts_of_training_share_nothing_with_those_that_are_asked_for(kind):
    drawn = {
        use: {facts.draw(kind, random.Random(seed), use) for seed in range(40)}
        for use in ("held_out", "training")
    }
    assert all(
        fact.answer in fact.sentence and fact.answer not in fact.question for fact in drawn["held_out"]
    )
    for what in ("question", "answer"):
        own, other = ({getattr(fact, what) for fact in drawn[use]} for use in drawn)
        assert len(own) > 2 and not own & other


def test_a_part_of_a_window_counts_as_one():
    assert (SETTINGS["find"].factor, SETTINGS["smollm2"].factor) == (8, 2)


# ---- reading


def test_perplexity_counts_scored_tokens_by_their_position():
    scored = [False, False, True, True, True]
    assert by_position([1.0, 2.0, 3.0, 4.0], scored, edges=[0, 4]) == {"0": 2.5, "4": 4.0}
    assert by_position([1.0, 2.0], [True, False, False], edges=[0, 2]) == {}
    records = [{"id": "a", "by_position": {"0": 1.0, "64": 2.0}}, {"group": "64/0", "found": 1.0}]
    assert scores_of(records) == {"nll/0": [1.0], "nll/64": [2.0], "64/0": [1.0]}


def test_reading_refuses_what_is_missing(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    with pytest.raises(UserError, match=r"suite\.documents is not set"):
        Reading(questions=str(rows)).check()
    with pytest.raises(UserError, match="does not exist"):
        Reading(questions=str(rows), documents=str(tmp_path / "none")).check()
    Reading(questions=str(rows), documents=str(rows), edges=[0, 64]).check()


@pytest.mark.slow
def test_a_cell_reads_questions_and_documents_in_one_process(tmp_path):
    """The suite by `align.evaluate` on an untrained model: every question and document has its record."""
    from align.evaluation.token_logps import sequence_logps

    policy = tiny.model(0).eval()
    tiny.save(policy, tmp_path / "model")
    documents = list(data.documents("dev"))[:2]
    asked = [row for row in data.questions("dev") if row["group"].startswith("64/")][:3]
    write_lines(tmp_path / "documents.jsonl", documents)
    write_lines(tmp_path / "questions.jsonl", asked)
    result = align.evaluate(
        "~suite",
        "+suite._target_=benchmarks.windows_protocol.reading.Reading",
        f"+suite.questions={tmp_path / 'questions.jsonl'}",
        f"+suite.documents={tmp_path / 'documents.jsonl'}",
        "+suite.edges=[0,64,512]",
        "+suite.max_new_tokens=2",
        "allow_targets=[benchmarks]",
        f"model.path={tmp_path / 'model'}",
        "model.dtype=float32",
        f"output={tmp_path / 'out'}",
    )
    assert [record.get("group") for record in result.records] == ["64/0"] * 3 + [None] * 2
    ids, scored = tokens_of(documents[0]["pieces"], tiny.tokenizer())
    with torch.no_grad():
        nll = -sequence_logps(policy, torch.tensor(ids))
    assert len(ids) == len(scored) == len(nll) + 1
    whole = nll[511:][torch.tensor(scored[512:])].mean()
    assert result.records[3]["by_position"]["512"] == pytest.approx(float(whole), rel=1e-5)
    assert set(result.scores) >= {"found", "nll, from 0", "nll, from 64", "nll, from 512"}


# ---- analysis


def cell(part: str, arm: str, seed: int | None, right: int, *, nll: float = 1.0):
    """A finished cell that answers `right` of ten questions at every length and depth."""
    found = {name: [1.0] * right + [0.0] * (10 - right) for name in data.conditions(SETTINGS[part].lengths)}
    found |= {f"nll/{edge}": [nll, nll + 0.2] for edge in SETTINGS[part].edges}
    return {
        "cell": "/".join((part, arm, *([] if seed is None else [f"seed{seed}"]))),
        "part": part,
        "method": arm,
        "seed": seed,
        "scores": found,
        "costs": [
            {"step": "train", "processor_seconds": 4.0},
            {"step": "evaluate", "processor_seconds": 8.0},
        ],
        "training": {"num_tokens": 100.0},
    }


def made(*cells):
    return {one["cell"]: one for one in cells}


def verdicts(results, part="find"):
    return {
        (one.question.key, one.first, one.second, one.length): one.verdict for one in answers(results, part)
    }


def test_verdicts():
    """Better with both seeds is a gain, with one alone it is not; a missing seed leaves it open."""
    found = made(
        *(cell("find", "base", seed, 5) for seed in (1, 2)),
        *(cell("find", "yarn", seed, 9) for seed in (1, 2)),
        *(cell("find", "linear", seed, 1) for seed in (1, 2)),
        *(cell("find", "dynamic", seed, 10 if seed == 1 else 4) for seed in (1, 2)),
        cell("find", "abf", 1, 9),
        *(cell("find", "long", seed, 5) for seed in (1, 2)),
        *(cell("find", "short", seed, 3) for seed in (1, 2)),
    )
    said = verdicts(found)
    assert said["A", "yarn", "base", 512] == "gain" and said["A", "linear", "base", 1024] == "loss"
    assert (
        said["A", "dynamic", "base", 512] == "not shown"
    )  # the mean and its interval lie above 0, one seed below
    assert said["A", "abf", "base", 512] == said["A", "power", "base", 512] == "open"
    assert said["K", "long", "base", 64] == "kept" and said["K", "short", "base", 64] == "lost"
    assert MARGIN == 0.05


def test_cells_without_a_seed_stand_for_all():
    found = made(
        cell("smollm2", "base", None, 1), cell("smollm2", "yarn", None, 9), cell("smollm2", "short", 1, 5)
    )
    said = verdicts(found, "smollm2")
    assert said["A", "yarn", "base", 12288] == "gain" and said["K", "short", "base", 4096] == "open"


def test_every_question_names_arms_and_every_arm_stands_in_one():
    for part, every in ARMS.items():
        asked = questions(part)
        named = {name for question in asked for pair in question.pairs for name in pair}
        assert named <= set(every) and set(every) - named <= {"hybrid_untrained"}
        assert all(length in SETTINGS[part].lengths for question in asked for length in question.at)


def test_means_and_intervals():
    """Eight of ten with both seeds: ten questions a condition count once; perplexity is e to the mean."""
    found = made(*(cell("find", "base", seed, 8, nll=0.1) for seed in (1, 2)))
    interval = accuracy(found, "find", "base", data.conditions((64,)))
    assert interval is not None and interval.mean == pytest.approx(0.8)
    assert (interval.n, interval.independent) == (100, 50)
    read = perplexity(found, "find", "base", 64)
    assert read is not None and read.mean == pytest.approx(math.exp(0.2))
    assert accuracy(found, "find", "yarn", ("64/0",)) is None


# ---- tables and pictures


def test_tables_without_a_cell_say_so():
    assert arms("find", {}) == NOT_RUN == question_table("find", {})
    console = Console(record=True, width=200, quiet=True)
    show({}, console)


def test_tables_show_what_the_cells_say(tmp_path):
    found = made(
        *(cell("find", name, seed, right) for name, right in (("base", 5), ("yarn", 9)) for seed in (1, 2))
    )
    table = arms("find", found)
    assert "| `yarn` | 90.0 [" in table and "| `yarn` | 4 | 8 | 100 |" in table and "`linear`" not in table
    assert "| `base` | 3.00 [" in table  # e^1.1
    said = question_table("find", found)
    assert "yarn − base | 512 | +40.0 | [" in said and "| +40.0, +40.0 | gain |" in said
    assert len(said.splitlines()) == 2 + 2  # both lengths
    assert [path.name for path in draw(found, tmp_path)] == ["find_depth.png", "find_positions.png"]


def test_every_arm_stands_in_one_panel():
    for part, every in ARMS.items():
        panels = kinds(part)
        assert sorted(name for names in panels.values() for name in names) == sorted(every)
    assert "s2" in kinds("find")["patterns"] and "e2_over" in kinds("find")["short rows"]


def test_time_left_is_the_mean_of_a_parts_cells():
    cells = [Cell("find", "a", 1), Cell("find", "b", 1), Cell("smollm2", "a", None)]
    assert time_left(cells[:2], {"find": [60.0, 120.0]}) == "about 3 minutes"
    assert time_left(cells, {"find": [60.0]}) == "about 2 minutes without part smollm2"
