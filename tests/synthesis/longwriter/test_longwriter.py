"""The LongWriter pipeline on a tiny model: scores, pairs, filters, and that no kill changes a row."""

from __future__ import annotations

import dataclasses
import json

import pytest

from align.core.errors import UserError
from align.data.formats import parse_row
from align.data.sources import open_sources, read_rows
from align.scores.length import count_words, length_score
from align.synthesis.longwriter.agent_write import AgentWrite
from align.synthesis.longwriter.candidates import Candidate
from align.synthesis.longwriter.instructions import load_instructions
from align.synthesis.longwriter.pipeline import LongWriterPipeline
from align.synthesis.longwriter.quality import Checks, Judge, Quality, structure
from align.synthesis.longwriter.self_lengthen import SelfLengthen
from tests.generation.helpers import KilledError
from tests.synthesis.scripted import save_model, settings_of, workspace

SMALL = {"sampled": 3, "agent_written": 1, "self_lengthened": 1, "max_new_tokens": 16, "temperature": 1.0}


def pipeline(instructions, *, agent=None, lengthen=None, **changes):
    settings = settings_of("longwriter") | SMALL | {"instructions": str(instructions)} | changes

    def part(kind, name, **small):
        plain = {key: value for key, value in settings.pop(name).items() if key != "_target_"}
        return kind(**(plain | small))

    made = LongWriterPipeline(
        agent_write=part(
            AgentWrite,
            "agent_write",
            min_step_words=3,
            max_step_words=12,
            max_step_tokens=12,
            max_plan_tokens=8,
            temperature=1.0,
            step_tries=2,
            **(agent or {}),
        ),
        self_lengthen=part(
            SelfLengthen, "self_lengthen", rounds=2, max_new_tokens=16, temperature=1.0, **(lengthen or {})
        ),
        **settings,
    )
    made.check()
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    path = tmp_path_factory.mktemp("instructions") / "rows.jsonl"
    rows = [{"prompt": f"bardel fingor {i} in {10 + i} words"} for i in range(5)]
    rows += [{"prompt": "hulkes", "length": 12}, {"prompt": "limmon nadpir"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, instructions):
    output = tmp_path_factory.mktemp("made")
    whole = pipeline(instructions)
    return output, whole.run(whole.read(), workspace(output, model))


def rows_of(output):
    return [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]


def test_the_best_answer_is_chosen_and_another_rejected(made, instructions):
    output, summary = made
    rows = rows_of(output)
    lengths = {item.text: item.length for item in load_instructions(str(instructions))}
    assert summary.rows == len(rows) >= 5
    places = set()
    for row in rows:
        required = lengths[row["prompt"][0]["content"]]
        scores = [answer["score"] for answer in row["answers"]]
        assert scores == sorted(scores, reverse=True) and len(scores) >= 2
        assert row["score"] == scores[0] and row["margin"] == scores[0] - scores[row["rejected_place"]] > 0
        assert row["answers"][0]["words"] == count_words(row["chosen"][0]["content"])
        rejected = row["answers"][row["rejected_place"]]
        assert rejected["words"] == count_words(row["rejected"][0]["content"])
        for answer in row["answers"]:
            assert answer["quality_by"] == "checks"
            if required is None:
                assert answer["length_score"] is None and answer["score"] == answer["quality_score"]
            else:
                assert answer["length_score"] == length_score(required, answer["words"])
                mean = (answer["length_score"] + answer["quality_score"]) / 2
                assert answer["score"] == pytest.approx(mean)
        places.add(row["rejected_place"])
    assert len(places) > 1  # at random, not always the worst
    assert summary.counts["answers: sampled"] >= 15 and summary.counts["answers: agent_write"] >= 1


def test_the_reader_of_training_rows_takes_both_kinds(made, model, instructions, tmp_path):
    output, _ = made
    for raw in read_rows(open_sources(str(output / "train.jsonl")).train):
        example = parse_row(raw, require_rejected=True).example
        assert example.turns[0].chosen == raw.values["chosen"][0]["content"]
        assert [dict(message) for message in example.messages] == raw.values["prompt"]
    sft = pipeline(instructions, rows="sft")
    summary = sft.run(sft.read(), workspace(tmp_path, model))
    assert summary.rows >= 5
    for raw in read_rows(open_sources(str(tmp_path / "train.jsonl")).train):
        example = parse_row(raw, require_rejected=False).example
        assert example.turns[0].chosen == raw.values["messages"][1]["content"]


def test_killed_after_any_number_of_groups_and_resumed_gives_the_same_file(
    made, model, instructions, tmp_path
):
    expected = (made[0] / "train.jsonl").read_bytes()
    groups = 0
    while True:
        broken = pipeline(instructions)
        output = tmp_path / str(groups)
        try:
            broken.run(broken.read(), workspace(output, model, groups=groups))
            break
        except KilledError:
            assert not (output / "train.jsonl").exists()
            broken.run(broken.read(), workspace(output, model))
            assert (output / "train.jsonl").read_bytes() == expected
            groups += 25
    assert groups >= 50


def test_blocks_change_nothing_but_batches(made, model, instructions, tmp_path):
    """Rows of one block and of several are of the same instructions, in the same order."""
    blocks = pipeline(instructions, block_rows=2)
    blocks.run(blocks.read(), workspace(tmp_path, model))
    assert [row["id"] for row in rows_of(tmp_path)] == [row["id"] for row in rows_of(made[0])]


def test_a_judge_scores_and_what_it_does_not_say_is_reported(model, instructions, tmp_path):
    """The scripted judge answers 6 of 10 calls with marks; two tries leave some answers unjudged, and counted."""
    judged = pipeline(instructions, quality=Judge(tries=2))
    summary = judged.run(judged.read(), workspace(tmp_path, model))
    unjudged = summary.dropped["answer without a readable judgement"]
    made = sum(number for name, number in summary.counts.items() if name.startswith("answers: "))
    assert unjudged > 0 and summary.counts["answers scored"] + unjudged == made
    for row in rows_of(tmp_path):
        for answer in row["answers"]:
            marks = answer["quality"]["marks"]
            assert answer["quality_by"] == "judge" and len(marks) == 6
            assert answer["quality_score"] == pytest.approx(sum((m - 1) * 25 for m in marks.values()) / 6)
            assert answer["quality"]["tries"] in (1, 2)


def test_minimum_tuning_keeps_one_stated_length_that_is_met(model, instructions, tmp_path):
    """`hulkes` has its length from a column, `limmon` has none: neither prompt states one."""
    tuned = pipeline(instructions, rows="sft", min_length_score=80)
    summary = tuned.run(tuned.read(), workspace(tmp_path, model))
    assert summary.dropped["instruction that does not state exactly one length"] == 2
    rows = rows_of(tmp_path)
    assert len(rows) == 5 - summary.dropped.get("best answer below min_length_score", 0)
    assert all(row["answers"][0]["length_score"] >= 80 for row in rows)


def test_without_a_required_length_quality_alone_counts(instructions):
    """200 words where 100 are asked for score 66.67, so that with quality 40 the mean is 53.33."""
    candidate = Candidate(" ".join(["bee"] * 200), "sampled", True)
    asked = dataclasses.replace(load_instructions(str(instructions))[0], length=100)
    (both,) = [pipeline(instructions)._score(asked, candidate, Quality(40.0, "checks"))]
    assert both is not None and both.score == pytest.approx((200 / 3 + 40) / 2)
    free = dataclasses.replace(asked, length=None)
    (alone,) = [pipeline(instructions)._score(free, candidate, Quality(40.0, "checks"))]
    assert alone is not None and alone.score == 40.0 and alone.length is None


def test_checks_want_a_whole_end_paragraphs_and_no_plan():
    prose = "Bees fly far and wide. They come home at night."
    good = Candidate(prose, "sampled", True)
    assert structure(good) == {"ends_whole": 1.0, "paragraphs": 1.0, "free_of_plan": 1.0}
    (quality,) = Checks().score("0", [("a", None, good)], None)  # type: ignore[arg-type, list-item]
    assert quality.score == 100.0 and quality.by == "checks"
    cut = dataclasses.replace(good, text="Bees fly far and", whole=False)
    assert structure(cut)["ends_whole"] == 0.0
    plan = "Paragraph 1 - Main Point: bees - Word Count: 20 words\nBees fly."
    assert structure(dataclasses.replace(good, text=plan))["free_of_plan"] == 0.5
    block = " ".join(["word"] * 1200) + "."  # three paragraphs' worth in one
    assert structure(dataclasses.replace(good, text=block))["paragraphs"] == pytest.approx(1 / 3)
    (repeated,) = Checks().score("0", [("a", None, dataclasses.replace(good, text=block))], None)  # type: ignore[arg-type, list-item]
    assert repeated.score == pytest.approx(100 * (0 + (1 + 1 / 3 + 1) / 3) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": "kto"}, r"pipeline\.rows=kto is not known"),
        ({"sampled": 1, "agent_written": 0, "self_lengthened": 0}, r"pipeline\.rows=dpo needs 2 answers"),
        ({"sampled": 0, "agent_written": 2}, r"pipeline\.self_lengthened extends sampled answers"),
        ({"self_lengthened": 4}, r"pipeline\.self_lengthened=4 extends more answers than are sampled"),
        ({"length_weight": 1.5}, r"pipeline\.length_weight=1\.5"),
        ({"agent": {"step_tolerance": -1}}, r"pipeline\.agent_write\.step_tolerance=-1"),
        ({"lengthen": {"extend_prompt": "Longer!"}}, r"pipeline\.self_lengthen\.extend_prompt"),
        ({"quality": Judge(model="m")}, r"pipeline\.quality\.model and pipeline\.quality\.generator"),
    ],
)
def test_contradictions_are_named(changes, sentence, instructions):
    with pytest.raises(UserError, match=sentence):
        pipeline(instructions, **changes)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a"}, r"rows\.jsonl:1: an instruction needs a column `prompt`"),
        ({"prompt": "a", "length": "200"}, r"rows\.jsonl:1: column `length`"),
        ({"prompt": "a\ud83d"}, r"rows\.jsonl:1: column `prompt` holds half of a surrogate pair"),
    ],
)
def test_rows_that_are_no_instructions(row, sentence, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=sentence):
        load_instructions(str(path))


def test_the_embedded_instructions_each_state_their_length():
    items = load_instructions("embedded")
    assert len(items) == 12 and all(item.length and item.length >= 100 for item in items)
