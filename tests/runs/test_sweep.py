"""Sweeps and their report: a failed run ends alone, each run has its folder, and processes of its own on request."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import load_file

from align import cli
from align.core.errors import UserError
from align.runs import exit_codes, jobs
from align.runs.ranking import RunResult, differing, rank
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny

CONFIGURATIONS = Path(__file__).parents[2] / "hydra_conf"
SHORT = (
    "trainer.max_steps=2",
    "trainer.gradient_accumulation_steps=1",
    "data.eval_size=3",
    "trainer.use_cpu=true",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 14)
    return folder


@pytest.fixture
def align(monkeypatch, capfd, folder):
    """Runs `align COMMAND …` in this process; returns exit code, stdout and stderr."""

    def call(command: str, *overrides: str) -> tuple[int, str, str]:
        base = [f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}", *SHORT]
        # argparse takes the overrides in one piece, so `-m` goes first
        arguments = sorted([*(base if command == "train" else []), *overrides], key="-m".__ne__)
        monkeypatch.setattr(sys, "argv", ["align", command, *arguments])
        GlobalHydra.instance().clear()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


RATES = ["1e-2", "3e-3", "1e-3", "3e-4", "-1", "1e-4", "3e-5", "1e-5", "3e-6"]


def test_nine_runs_one_failed_eight_ranked(align, tmp_path):
    """DPO with nine learning rates, one of them impossible; the reference is computed by the first run alone."""
    sweep = tmp_path / "sweep"
    cache = "reference.cache=${hydra:sweep.dir}/reference"
    code, _, err = align(
        "train", "-m", "method=dpo", f"trainer.learning_rate={','.join(RATES)}", cache, f"output={sweep}"
    )
    assert code == 1, err[-3000:]
    assert "some jobs of the sweep failed" in err
    results = [sweep / str(i) / "results.json" for i in range(9)]
    assert [path.is_file() for path in results] == [rate != "-1" for rate in RATES]
    costs = [json.loads(path.read_text())["training"] for path in results if path.is_file()]
    assert costs[0]["reference/tokens"] > 0
    assert all(cost["reference/tokens"] == 0 for cost in costs[1:])

    code, out, _ = align("report", f"path={sweep}", "metric=eval_rewards/margins")
    assert code == 0
    assert "8 runs by eval_rewards/margins, 1 without it" in out
    assert re.search(r"^4: failed: .*learning_rate=-1 cannot be used", out, flags=re.MULTILINE)
    margins = {
        i: json.loads(p.read_text())["after"]["eval_rewards/margins"]
        for i, p in enumerate(results)
        if p.is_file()
    }
    best_first = sorted(margins, key=lambda i: -margins[i])
    ranked = [int(line.split("│")[2]) for line in out.splitlines() if re.match(r"│ \d", line)]
    assert ranked == best_first
    page = (sweep / "report.html").read_text()
    assert page.count("<tr>") == 10
    assert "learning_rate=-1 cannot be used" in page
    assert "data:image/png;base64," in page
    assert (sweep / "report.png").read_bytes().startswith(b"\x89PNG")


def test_ranking_and_differing_settings():
    """Losses ascend, the rest descends; what is alike in all runs and where they lie is no setting of the sweep."""

    def run(name: str, beta: float, loss: float, accuracy: float) -> RunResult:
        settings = {"output": name, "seed": 1, "method.loss.beta": beta}
        return RunResult(
            name, settings, "finished", after={"eval_loss": loss, "eval_rewards/accuracies": accuracy}
        )

    runs = [run("a", 0.1, 0.7, 0.5), run("b", 0.2, 0.6, 0.9), run("c", 0.3, 0.5, 0.8)]
    assert [r.name for r in rank(runs, "eval_loss")] == ["c", "b", "a"]
    assert [r.name for r in rank(runs, "eval_rewards/accuracies")] == ["b", "c", "a"]
    assert [r.name for r in rank(runs, "eval_loss", order="descending")] == ["a", "b", "c"]
    assert differing(runs) == ["method.loss.beta"]
    with pytest.raises(
        UserError, match="metric=eval_x is in no run's results: use eval_loss, eval_rewards/accuracies"
    ):
        rank(runs, "eval_x")


def test_evaluations_are_ranked_by_their_scores(align, tmp_path):
    """Folders of `align evaluate`: one suite on two models, with intervals, and one that has not ended."""
    found = {"base": 0.25, "trained": 0.5, "running": None}
    for name, mean in found.items():
        settings = {"suite": {"_target_": "align.evaluation.retrieval.Retrieval"}, "model": {"path": name}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
        if mean is not None:
            scores = {"needles": {"mean": mean, "low": mean - 0.125, "high": mean + 0.125, "n": 8}}
            (tmp_path / name / "summary.json").write_text(json.dumps({"scores": scores}))
    code, out, err = align("report", f"path={tmp_path}")
    assert code == 0, err
    assert "2 runs by retrieval/needles, 1 without it" in out
    assert "running: unfinished" in out
    page = (tmp_path / "report.html").read_text()
    assert page.index("0.5 (0.375 … 0.625)") < page.index("0.25 (0.125 … 0.375)")


@pytest.mark.parametrize(
    ("override", "sentence"), [("path=/nowhere", "is no folder"), ("path=.", "holds no run")]
)
def test_report_says_what_is_missing(align, tmp_path, monkeypatch, override, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = align("report", override)
    assert code == exit_codes.USAGE
    assert sentence in err


# ---- ready sweeps


def test_every_method_has_a_sweep_of_keys_that_it_takes():
    """Each of them composes at both ends of its grid, and gives nine runs."""
    methods = {path.stem for path in (CONFIGURATIONS / "method").glob("*.yaml")}
    assert {path.stem for path in (CONFIGURATIONS / "sweep").glob("*.yaml")} - {"adapters"} == methods
    for name in sorted(methods):
        params = OmegaConf.load(CONFIGURATIONS / "sweep" / f"{name}.yaml").hydra.sweeper.params
        grid = {key: str(values).split(",") for key, values in params.items()}
        assert len(grid) == 2 and all(len(values) == 3 for values in grid.values()), name
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
            for end in (0, -1):
                overrides = [f"{key}={values[end]}" for key, values in grid.items()]
                config = compose(config_name="train", overrides=[f"sweep={name}", *overrides])
                assert config.method.name == name


def test_the_sweep_of_adapters_names_adapters_that_are_there():
    """Each composes with SFT, and all parameters are one of them."""
    params = OmegaConf.load(CONFIGURATIONS / "sweep" / "adapters.yaml").hydra.sweeper.params
    names = params.adapter.split(",")
    assert len(set(names)) == 9 and "none" in names
    for name in names:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
            config = compose(config_name="train", overrides=["sweep=adapters", f"adapter={name}"])
            assert config.method.name == "sft"
            assert (not config.adapter) == (name == "none")


def test_optuna_optimises_what_the_run_returns(align, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    code, _, err = align(
        *("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"),
        *("hydra.sweeper.direction=maximize", "method=simpo", "objective=eval_rewards/margins"),
        *("trainer.learning_rate=interval(1e-5,1e-2)", f"output={tmp_path / 'study'}"),
    )
    assert code == 0, err
    values = [
        json.loads((tmp_path / "study" / str(i) / "results.json").read_text())["after"][
            "eval_rewards/margins"
        ]
        for i in range(2)
    ]
    best = OmegaConf.load(tmp_path / "study" / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(values))


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side(align, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, _, err = align(
        *("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "method=simpo"),
        *("seed=1,2", f"output={tmp_path / 'pair'}"),
    )
    assert code == 0, err
    assert all((tmp_path / "pair" / str(i) / "results.json").is_file() for i in range(2))


def test_a_job_leaves_nothing_in_a_folder_of_others(align, tmp_path):
    """Neither does its start take a file away that is called as ours is."""
    theirs = tmp_path / "sweep" / "0"
    theirs.mkdir(parents=True)
    for name in ("thesis.txt", "failed.txt"):
        (theirs / name).write_text(f"my {name}")
    code, _, err = align("train", "-m", "method=dpo", f"output={tmp_path / 'sweep'}")
    assert code == 1
    assert "is there and holds no run of this command, but thesis.txt" in err
    assert {path.name: path.read_text() for path in theirs.iterdir()} == {
        "thesis.txt": "my thesis.txt",
        "failed.txt": "my failed.txt",
    }


# ---- processes of a job


def test_a_sweep_inside_a_launcher_is_refused(align, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    code, _, err = align("train", "-m", "seed=1,2", f"output={tmp_path}")
    assert code == exit_codes.USAGE
    assert "`align train -m …`, with launch.processes=N or launch.config=FILE" in err
    assert not list(tmp_path.iterdir())


def test_the_command_and_configuration_of_a_child(tmp_path, monkeypatch):
    """What accelerate is called with, and what the processes read: everything resolved, no second launch."""
    called = []
    monkeypatch.setattr(jobs, "run_child", lambda command: called.append(command) or 0)
    config = OmegaConf.create(
        {"output": str(tmp_path), "seed": 3, "twice": "${seed}", "launch": {"processes": 4, "config": None}}
    )
    assert jobs.launch(config) == 0
    (command,) = called
    words = " ".join(command[1:])
    assert "--multi_gpu --num_processes 4 --main_process_port 0 -m align.train" in words
    assert words.endswith(f"--config-dir {tmp_path} --config-name launch")
    child = OmegaConf.load(tmp_path / "launch.yaml")
    assert child.twice == 3
    assert child.launch == {"processes": None, "config": None}
    assert child.defaults == ["_self_"]
    monkeypatch.setattr(jobs, "run_child", lambda command: 1)
    with pytest.raises(UserError, match="ended with exit code 1"):
        jobs.launch(config)
    config.launch.config = "/nowhere.yaml"
    with pytest.raises(UserError, match=r"launch\.config=/nowhere\.yaml is no file"):
        jobs.launch(config)
    config.launch = {"processes": None, "config": None}
    assert jobs.launch(config) is None


@pytest.mark.slow
def test_jobs_with_two_processes_end_with_the_weights_of_one(folder, tmp_path):
    """Two jobs, each in two processes that accelerate starts; against one process with the same prompts a step."""
    start = [sys.executable, "-m", "align.train", "-m"]
    common = [
        *(f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}"),
        *("trainer.learning_rate=0.05", "trainer.optim=sgd", *SHORT),
    ]
    two = ["launch.processes=2", "method=logo,simpo", "trainer.per_device_train_batch_size=2"]
    one = ["method=logo,simpo", "trainer.per_device_train_batch_size=4"]
    for name, overrides in (("two", two), ("one", one)):
        done = subprocess.run(
            [*start, *common, *overrides, f"output={tmp_path / name}"],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for job in ("0", "1"):
        pair = [load_file(tmp_path / name / job / "model" / "model.safetensors") for name in ("two", "one")]
        assert_close(*pair, tolerance=1e-5)
