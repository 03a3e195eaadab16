"""One output folder belongs to one configuration."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from align.core.errors import UserError
from align.core.files import write_atomically
from align.runs.folder import claim_output, has_saved


def config(**changes):
    base = {
        "output": "a",
        "seed": 1,
        "resume": "auto",
        "trainer": {"learning_rate": 5e-7, "betas": [0.9, 0.95]},
    }
    return OmegaConf.merge(OmegaConf.create(base), OmegaConf.create(changes))


def save(folder):
    """What makes a folder worth keeping: without it another configuration may claim it."""
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "seal.json").write_text("{}")


def test_the_same_configuration_continues_and_interpolations_are_resolved(tmp_path):
    claim_output(tmp_path / "run", config(twin="${seed}"))
    claim_output(tmp_path / "run", config(twin=1))
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").twin == 1


def test_differing_keys_are_named_with_both_values_and_no_others(tmp_path):
    claim_output(tmp_path, config())
    save(tmp_path)
    with pytest.raises(UserError) as error:
        claim_output(tmp_path, config(seed=2, trainer={"learning_rate": 1e-6, "extra": None}))
    message = str(error.value)
    assert "seed (1 → 2)" in message
    assert (
        "trainer.learning_rate (5.0e-07 → 1.0e-06)" in message
        or "trainer.learning_rate (5e-07 → 1e-06)" in message
    )
    assert "trainer.extra ((absent) → null)" in message
    assert "betas" not in message and "resume" not in message


def test_the_folder_of_another_command_is_named_by_the_command(tmp_path):
    """Not by the keys that the two commands do not share, which are most of them."""
    claim_output(tmp_path, config(pipeline={"name": "logo"}))
    save(tmp_path)
    with pytest.raises(
        UserError, match=r"holds what `align synthesize` has made: name another output folder"
    ):
        claim_output(tmp_path, config(objective="auto", method={"name": "dpo"}))


def test_ignored_keys_and_the_folder_itself_may_change(tmp_path):
    claim_output(tmp_path, config())
    save(tmp_path)
    changed = config(output="b", resume="never", trainer={"learning_rate": 1.0})
    claim_output(tmp_path, changed, ignore=("resume", "trainer"))
    with pytest.raises(UserError, match="resume"):
        claim_output(tmp_path, changed, ignore=("trainer",))


def test_a_plain_mapping_is_taken_and_compared_with_a_configuration(tmp_path):
    claim_output(tmp_path, {"seed": 1, "sizes": (1, 2)})
    claim_output(tmp_path, OmegaConf.create({"seed": 1, "sizes": [1, 2]}))


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    claim_output(tmp_path, config())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a: [", "- 1\n", ""])
def test_an_unreadable_record_is_refused_by_its_path(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        claim_output(tmp_path, config())


def test_an_atomic_write_leaves_nothing_beside_the_file(tmp_path):
    write_atomically(tmp_path / "sub" / "file", "one")
    write_atomically(tmp_path / "sub" / "file", "two")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["file"]
    assert (tmp_path / "sub" / "file").read_text() == "two"


def test_a_target_that_has_moved_is_the_same_target(tmp_path):
    """A folder of version 0.1.0 goes on; another class of the same place does not."""
    old = {"pipeline": {"scorer": {"_target_": "align.synthesis.scorers.Bm25"}}}
    new = {"pipeline": {"scorer": {"_target_": "align.synthesis.logo.relevance.Bm25"}}}
    other = {"pipeline": {"scorer": {"_target_": "align.synthesis.logo.relevance.TfIdf"}}}
    claim_output(tmp_path, old)
    save(tmp_path)
    claim_output(tmp_path, new)
    with pytest.raises(UserError, match=r"pipeline\.scorer\._target_ \(align\.synthesis\.scorers\.Bm25 → "):
        claim_output(tmp_path, other)


def test_a_folder_whose_run_has_saved_nothing_is_free(tmp_path, capsys):
    """A crash in the first seconds used to refuse every later command with other settings."""
    claim_output(tmp_path, config())
    for name in ("before.json", "rows.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "work").mkdir()
    (tmp_path / "suites" / "needles").mkdir(parents=True)
    (tmp_path / "train.log").write_text("said\n")
    claim_output(tmp_path, config(seed=2))
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("held a run with another configuration that had saved nothing: it is begun anew.")
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 2
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "work", "train.log"}
    claim_output(tmp_path, config(seed=2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint-3/seal.json", "earlier-1/config.yaml", "model/config.json", "results.json"),
        *("summary.json", "train.jsonl", "work/calls.jsonl", "unselected/train.jsonl"),
    ],
)
def test_what_a_run_has_saved_keeps_its_folder(tmp_path, name):
    claim_output(tmp_path, config())
    assert not has_saved(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert has_saved(tmp_path)
    with pytest.raises(UserError, match=r"seed \(1 → 2\)"):
        claim_output(tmp_path, config(seed=2))
