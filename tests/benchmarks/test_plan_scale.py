"""benchmarks/plan_scale.py: its volumes against numbers derived by hand, and the placing of rows on GPUs."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from align.core.errors import UserError
from align.planning.job import Job, Precision, Rows, Strategy
from align.planning.time import exchange_bytes, step_time
from benchmarks import flexible_degrees, plan_scale
from benchmarks.flexible_degrees import least, makespan, many_degrees, one_degree

# Llama-3-8B: 32 layers, 32 heads and 8 KV heads of 128. 32,768 tokens on 8 GPUs: 4,096 and one that nobody sees. bf16,
# and three passes, since checkpoints are recomputed.
PER_TOKEN = 3 * 32 * 2
SENT = {
    # 2·32 + 2·8 heads of 128, of which 7/8 leave the GPU.
    Strategy(exchange="ulysses", degree=8): PER_TOKEN * 4097 * (2 * 32 + 2 * 8) * 128 * 7 / 8,
    # Keys and values of 8 heads to 7 others.
    Strategy(exchange="gather", degree=8): PER_TOKEN * 4097 * 2 * 8 * 128 * 7,
    # Ulysses among 4, then keys and values to one other group.
    Strategy(exchange="mixed", degree=8, inner=4): PER_TOKEN
    * 4097
    * 128
    * ((2 * 32 + 2 * 8) * 3 / 4 + 2 * 8),
    # On 32 GPUs (1,025 tokens) each has one query head, and each KV head is copied to 4 of them.
    Strategy(exchange="ulysses", degree=32): PER_TOKEN * 1025 * (2 * 32 + 2 * 32) * 128 * 31 / 32,
    # 8 in a machine, 4 machines.
    Strategy(exchange="mixed", degree=32, inner=8): PER_TOKEN
    * 1025
    * 128
    * ((2 * 32 + 2 * 8) * 7 / 8 + 2 * 8 * 3),
}


@pytest.fixture(scope="module")
def sizes():
    return plan_scale.architecture()


def job(length: int = 32768) -> Job:
    return Job(Rows(length - sum(plan_scale.ANSWERS), plan_scale.ANSWERS), Precision(4, autocast=True))


@pytest.mark.parametrize("strategy", SENT, ids=lambda s: f"{s.exchange} {s.degree}/{s.inner}")
def test_volumes_derived_by_hand(sizes, strategy):
    machine = plan_scale.cluster(64)
    inside, outside = exchange_bytes(sizes, job(), strategy, machine, job().rows)
    assert inside + outside == pytest.approx(SENT[strategy], rel=1e-12)
    assert (outside > 0) == (strategy.degree > machine.per_node)


def test_what_leaves_the_machine(sizes):
    """Degree 16 over machines of 8: 8 of 15 others are elsewhere. In the mix only the gathered part leaves."""
    machine = plan_scale.cluster(64)
    for exchange in ("ulysses", "gather"):
        inside, outside = exchange_bytes(
            sizes, job(), Strategy(exchange=exchange, degree=16), machine, job().rows
        )
        assert outside / (inside + outside) == pytest.approx(8 / 15)
    mixed = Strategy(exchange="mixed", degree=16, inner=8)
    _, outside = exchange_bytes(sizes, job(), mixed, machine, job().rows)
    assert outside == pytest.approx(PER_TOKEN * 2049 * 2 * 8 * 128)


def test_how_the_volume_falls_with_the_degree(sizes):
    """Ulysses sends half as much on twice the GPUs (once few heads stay home), gather as much as before."""
    sent = {
        (kind, degree): step_time(
            sizes, job(2**20), Strategy("zero3", kind, degree), plan_scale.cluster(64)
        ).exchange_bytes
        for kind in ("ulysses", "gather")
        for degree in (4, 8)
    }
    assert sent["ulysses", 8] / sent["ulysses", 4] == pytest.approx(1 / 2 * (7 / 8) / (3 / 4), rel=1e-3)
    assert sent["gather", 8] / sent["gather", 4] == pytest.approx(1 / 2 * 7 / 3, rel=1e-3)


def test_more_gpus_are_faster_and_what_does_not_fit_is_left_out(sizes):
    cells = [plan_scale.fastest(sizes, job(2**17), plan_scale.cluster(n), "gather") for n in (8, 16)]
    first, second = cells
    assert first is not None and second is not None
    assert second.time.per_prompt < first.time.per_prompt
    assert second.time.prompts == first.time.prompts == plan_scale.PROMPTS
    assert plan_scale.fastest(sizes, job(2**24), plan_scale.cluster(8), "ulysses") is None


def test_layouts_of_the_mix_stay_within_a_machine():
    found = {(s.degree, s.inner) for s in plan_scale.layouts("mixed", 32) if s.exchange == "mixed"}
    assert found == {(4, 2), (8, 2), (8, 4), (16, 2), (16, 4), (16, 8), (32, 2), (32, 4), (32, 8)}


# ---- one degree against several


def test_rows_go_where_gpus_are_free_first():
    """Two rows of degree 2 side by side, then four of degree 1 behind them: 3 + 1; a fifth waits: 3 + 2."""
    assert makespan([3, 3, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1], 4) == 4
    assert makespan([3, 3, 1, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1, 1], 4) == 5


def test_degrees_a_row_against_one_for_all():
    """A long row that only 4 GPUs hold, 10 s; four short ones, 4 s whatever the degree: 10 + 4 · 4 against 10 + 4."""
    table = np.array([[np.inf, np.inf, 10.0]] + [[4.0, 4.0, 4.0]] * 4)
    one = one_degree(table, (1, 2, 4), 4)
    assert one.tolist() == [np.inf, np.inf, 26.0]
    assert many_degrees(table, (1, 2, 4), 4, at_most=26.0) == 14.0
    assert least(table, (1, 2, 4), 4) == (4 * 10 + 4 * 4) / 4


def test_the_ways_are_ordered(sizes, monkeypatch):
    """Bound ≤ many ≤ one a batch ≤ one for all, on a long tail."""
    monkeypatch.setattr(flexible_degrees, "BATCH", 128)
    monkeypatch.setattr(flexible_degrees, "STEPS", 2)
    monkeypatch.setattr(flexible_degrees, "STRETCHES", (1,))
    lengths = np.array([500, 1000, 4000, 8000] * 8 + [250000])
    lora = plan_scale.architecture(lora=16)
    slow = {"slow": plan_scale.cluster(64, "a100_80gb", memory_gb=40.0, inter_gb_per_s=6.25)}
    for one in flexible_degrees.compare(lora, lengths, slow):
        ways = [one[way] for way in ("bound", "many_a_batch", "one_a_batch", "one_for_all")]
        assert ways == sorted(ways)
        assert one["many_a_batch"] < one["one_for_all"]


def test_rows_that_no_degree_holds_are_refused():
    lora = plan_scale.architecture(lora=16)
    small = {"small": plan_scale.cluster(8, "a100_80gb", memory_gb=20.0)}
    with pytest.raises(UserError, match="no degree on small holds the longest row, 900000 tokens"):
        flexible_degrees.compare(lora, np.array([1000, 900000]), small)


def test_real_lengths_are_counted_from_the_files(tmp_path):
    (tmp_path / "documents").mkdir()
    with zipfile.ZipFile(tmp_path / "documents" / "state_union.zip", "w") as archive:
        archive.writestr("speech.txt", "x" * 5000)
        archive.writestr("README", "x")
    (tmp_path / "preference").mkdir()
    row = {
        "conversations": [{"value": "q" * 100}],
        "chosen": {"value": "c" * 300},
        "rejected": {"value": "r" * 600},
    }
    (tmp_path / "preference" / "dpo_en_demo.json").write_text(json.dumps([row]))
    assert flexible_degrees.real_lengths(tmp_path).tolist() == [1000, 200]


def test_the_command_writes_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ALIGN_DATA", raising=False)
    words = ["--gpus", "8", "16", "--lengths", "32768", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["plan_scale", *words])
    plan_scale.main()
    said = capsys.readouterr().out
    assert "16 GPUs: degree, seconds a prompt" in said
    assert "ALIGN_DATA is not set" in said
    written = json.loads((tmp_path / "plan_scale.json").read_text())
    assert len(written["cells"]) == 2 * 3
    sent = {(one["exchange"], one["degree"]): one["exchange_gb_per_row"] for one in written["by_degree"]}
    assert sent["ulysses", 2] > sent["ulysses", 8]
    assert sent["gather", 2] < sent["gather", 8]
    assert (tmp_path / "plan_scale.png").read_bytes().startswith(b"\x89PNG")
