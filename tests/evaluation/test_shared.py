"""Work that several processes share: each call is made once, whoever comes late; nobody writes to another's ledger."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from accelerate import PartialState

from align.evaluation.ask import Sample, answer, user_request
from align.evaluation.longwrite import LongWrite
from align.evaluation.perplexity import Perplexity
from align.runs.exclusive import exclusive
from align.scores.judgement import DIMENSIONS
from align.synthesis.longwriter.quality import Judge
from tests.distributed import run_distributed
from tests.evaluation.helpers import Answers, evaluation
from tests.forked import run as run_forked
from tests.tiny import save_tiny


def samples(count: int) -> list[Sample]:
    return [
        Sample(user_request(f"s/{i}", f"w{i + 8}", seed=0, max_new_tokens=4), {"place": i})
        for i in range(count)
    ]


def worker(rank: int, size: int, folder: str) -> dict:
    """Process 1 comes late to every piece of work, when the first one has done some of its share."""
    os.environ.update(ACCELERATE_USE_CPU="true", MASTER_ADDR="localhost", MASTER_PORT="1")
    PartialState(cpu=True)
    place = Path(folder)
    given = evaluation(place / "asked", Answers(str.upper), model=str(place / "model"))
    time.sleep(0.5 * rank)
    said = [completion.text for completion in answer("s", samples(9), given, shorter="")]
    asked = given.workspace.generator.asked
    time.sleep(0.5 * rank)
    suite = Perplexity(documents=str(place / "texts"), length=20, window=8, stride=4, edges=[0])
    measured = [record["id"] for record in suite.run(given).records]
    judging = Answers(lambda prompt: json.dumps(dict.fromkeys(DIMENSIONS, 3)))
    time.sleep(0.5 * rank)
    judged = LongWrite(predictions=str(place / "written.jsonl"), quality=Judge()).run(
        evaluation(place / "judged", judging)
    )
    marks = [record["quality_score"] for record in judged.records]
    return {"said": said, "asked": asked, "measured": measured, "marks": marks, "judged": judging.asked}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / "texts" / f"d{i}.txt").write_text(" ".join(f"w{(7 * j + i) % 90 + 8}" for j in range(25)))
    rows = [{"prompt": f"p{i}", "length": 3, "response": f"one two {i}"} for i in range(5)]
    (tmp_path / "written.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def test_late_processes_make_no_call_twice(folder):
    found = run_distributed(worker, 2, str(folder))
    assert found[0]["said"] == found[1]["said"] == [f"W{i + 8}" for i in range(9)]
    assert sorted(one["asked"] for one in found) == [4, 5]
    assert found[0]["measured"] == found[1]["measured"] == [f"d{i}.txt" for i in range(5)]
    assert found[0]["marks"] == found[1]["marks"] == [50.0] * 5
    assert sum(one["judged"] for one in found) == 5
    for name in ("0", "1"):
        assert (folder / "judged" / "work" / f"judge-longwrite.{name}.jsonl").is_file()
    # One process goes on from both ledgers, and leaves a line that another was writing as it is.
    torn = folder / "asked" / "work" / "s.1.jsonl"
    with torn.open("a") as file:
        file.write('{"request": "half a l')
    before = torn.read_bytes()
    model = Answers(str.upper)
    said = answer("s", samples(9), evaluation(folder / "asked", model), shorter="")
    assert ([one.text for one in said], model.asked) == (found[0]["said"], 0)
    assert torn.read_bytes() == before


def test_the_command_in_two_processes(folder):
    """What `accelerate launch --cpu` starts: two processes that know of each other, each row asked once."""
    rows = [{"prompt": f"w{i + 8}", "answers": ["w20"]} for i in range(5)]
    (folder / "q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    output = folder / "out"
    argv = [
        *("align", "evaluate", "suite=questions", f"suite.path={folder / 'q.jsonl'}", f"output={output}"),
        *("suite.max_new_tokens=2", f"model.path={folder / 'model'}"),
    ]
    assert run_forked(argv, 2) == [0, 0], Path(f"{output}.log").read_text()[-3000:]
    ledgers = sorted((output / "work").glob("questions*.jsonl"))
    assert [path.name for path in ledgers] == ["questions.0.jsonl", "questions.1.jsonl"]
    assert sum(len(path.read_text().splitlines()) for path in ledgers) == 5
    assert len((output / "samples.jsonl").read_text().splitlines()) == 5
    with exclusive(output):
        assert run_forked([*argv, "resume=never"], 2) == [2, 2]
    assert "is in use by another run" in Path(f"{output}.log").read_text()
    assert all(path.is_file() for path in ledgers)
