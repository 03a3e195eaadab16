"""Commands and trainer as a notebook meets them: what is refused, what is shown, what is left as it was."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

import align
from align.cli import COMMANDS
from align.core.errors import AlignWarning
from align.core.readable import Readable
from align.runs.api import compose, store
from align.runs.console import quiet_call
from align.training import preparation
from losses import LossOutput, simpo_loss
from losses.divergences import forward_kl
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

ROWS = [{"prompt": f"w{i} w9", "chosen": f"w{i + 1} w20", "rejected": f"w{i + 2} w21"} for i in range(8, 16)]
SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": row["prompt"]}],
        "chosen": {"from": "gpt", "value": row["chosen"]},
        "rejected": {"from": "gpt", "value": row["rejected"]},
    }
    for row in ROWS
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


@pytest.fixture
def train(model_folder, tmp_path):
    """`align.train` on a tiny model, two prompts a step, one step."""

    def call(name: str, *overrides: str, **objects: Any) -> Any:
        return align.train(
            "method=dpo",
            f"model.path={model_folder}",
            "trainer.gradient_accumulation_steps=2",
            "trainer.max_steps=1",
            "trainer.learning_rate=1e-2",
            "trainer.save_strategy=no",
            "data.eval_size=2",
            f"output={tmp_path / name}",
            *overrides,
            **objects,
        )

    return call


# ---- rows


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("rows.jsonl", "a file is named by data.path=…"),
        (Path("rows.jsonl"), "a file is named by data.path=…"),
        (ROWS[0], r"data=\[row\]"),
        (DatasetDict(train=Dataset.from_list(ROWS)), r"data=NAME\['train'\]"),
        (Dataset.from_list(ROWS).to_pandas(), "from_pandas"),
        ([], "data is empty"),
        ((row for row in []), "data is empty"),
        (3, "has to be a list of dictionaries"),
        ([ROWS[0], 3], "data: entry 2 is a int"),
        ([{"prompt": object()}], "data: entry 1 cannot be written"),
        ([ROWS[0], {"prompt": "w8"}], r"^data\.jsonl:2: column chosen"),
    ],
)
def test_what_is_no_list_of_rows_is_refused_with_what_to_write(train, given, wanted):
    with pytest.raises(align.UserError, match=wanted):
        train("refused", data=given)


def test_equal_rows_are_one_file_named_for_complaints():
    once, again = store(ROWS), store(iter(ROWS))
    assert once == again and once.name == "data.jsonl"
    dataset = store(Dataset.from_list(ROWS), what="eval_data")
    assert dataset.name == "eval_data.parquet"
    assert dataset == store(Dataset.from_list(ROWS), what="eval_data")


def test_a_list_and_a_dataset_and_sharegpt_train_alike(train, capfd):
    """One step from the same weights on the same rows; ShareGPT's are conversations, so their prompts differ."""
    found = [
        train(name, data=rows, eval_data=held_out)
        for name, rows, held_out in (
            ("list", ROWS, ROWS[:2]),
            ("dataset", Dataset.from_list(ROWS), Dataset.from_list(ROWS[:2])),
        )
    ]
    assert found[0].after["eval_loss"] == found[1].after["eval_loss"] < found[0].before["eval_loss"]
    assert found[0].data["eval_rows"] == 2
    shared = train("sharegpt", data=SHAREGPT, eval_data=Dataset.from_list(SHAREGPT[:2]))
    assert shared.after["eval_loss"] < shared.before["eval_loss"]
    assert "parquet" not in capfd.readouterr().err


def test_precision_of_one_call_is_not_that_of_the_next(train):
    """float32, bfloat16, float32: the third gives the first's numbers, the second others."""
    first, second, third = (
        train(str(i), f"trainer.bf16={precision}", data=ROWS)
        for i, precision in enumerate(("false", "true", "false"))
    )
    assert first.after["eval_logps/chosen"] == third.after["eval_logps/chosen"]
    assert first.after["eval_logps/chosen"] != second.after["eval_logps/chosen"]


def test_the_same_call_again_and_another_one(train):
    """A finished run is found as it was, with checkpoints and without; another is refused."""
    for saved in ("steps", "no"):
        result, again = (train(saved, f"trainer.save_strategy={saved}", data=ROWS) for _ in range(2))
        assert (again.after["eval_loss"], again.model) == (result.after["eval_loss"], result.model)
        assert (again.before, again.training) == (result.before, result.training)  # with its seconds
    with pytest.raises(align.UserError, match=r"seed \(42 → 1\)"):
        train("no", "seed=1", data=ROWS)


# ---- arguments


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((ROWS,), r"data=rows.*not a list"),
        (("-m", "seed=1,2"), "a loop over calls is a sweep"),
        (("--config-dir", "conf"), "config_dir="),
    ],
)
def test_what_is_no_override_is_refused(overrides, wanted):
    with pytest.raises(align.UserError, match=wanted):
        align.train(*overrides)


def test_a_folder_of_ones_own_configuration(tmp_path):
    folder = tmp_path / "it's mine" / "method"
    folder.mkdir(parents=True)
    text = "name: mine\nloss: {_target_: losses.simpo_loss, _partial_: true, beta: 3.0, gamma: 0.0}\n"
    (folder / "mine.yaml").write_text(text)
    assert compose("train", ["method=mine"], config_dir=folder.parent).method.loss.beta == 3.0
    with pytest.raises(align.UserError, match="config_dir=nowhere is no folder"):
        align.train("method=mine", config_dir="nowhere", data=ROWS)


def hinge(policy, reference=None, *, margin: float) -> LossOutput:
    loss = torch.relu(margin - policy.chosen + policy.rejected.mean(1))
    return LossOutput(loss, policy.chosen.detach(), policy.rejected.detach())


def test_settings_may_be_numbers_of_numpy_and_torch():
    for beta in (np.float64(0.5), np.float32(0.5), torch.tensor(0.5)):
        assert align.method("dpo", beta=beta).loss.keywords["beta"] == 0.5


def test_a_method_of_a_function():
    method = align.method(hinge, margin=1.0)
    assert (method.name, method.needs.reference, method.uses_rejected()) == ("hinge", "none", True)
    assert align.method(hinge, needs={"reference": "same"}, margin=1.0).needs.reference == "same"


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: align.method("hinge"), "method=hinge is not known: use .*dpo"),
        (lambda: align.method("dpo", bata=1), r"method\.loss\.bata is unknown"),
        (lambda: align.method("dpo", needs={}), "needs of its own"),
        (lambda: align.method(3), "a name or a function, not a int"),
        (lambda: align.method(hinge), "do not fit.*margin"),
        (lambda: align.method(hinge, margin=1.0, needs={"referee": "same"}), r"method\.needs\.referee"),
        (lambda: align.method(lambda policy, reference: policy.chosen), "LossOutput"),
        (
            lambda: align.method(lambda policy, reference: LossOutput(1.0, policy.chosen, policy.rejected)),
            "LossOutput",
        ),
        (lambda: align.method(lambda policy, reference: reference.chosen), "do not fit.*NoneType"),
        (lambda: align.method(lambda policy, reference: {}["a"]), "do not fit"),
        (lambda: align.method("f_dpo", divergence=forward_kl), "divergence=.* named too.*_target_"),
        (lambda: align.method("dpo", beta=np.ones(2)), "beta=.* is no setting of a loss"),
    ],
)
def test_a_method_that_is_none_is_refused(call, wanted):
    with pytest.raises(align.UserError, match=wanted):
        call()


def test_every_command_is_a_function():
    assert set(COMMANDS) == {name for name in align.__all__ if isinstance(getattr(align, name), ModuleType)}
    assert all(callable(getattr(align, name)) for name in COMMANDS)


# ---- the trainer


def make_trainer(folder: Path, model: Any, **given: Any) -> align.PreferenceTrainer:
    settings = {"logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2, "max_steps": 1}
    arguments = TrainingArguments(str(folder), **settings, disable_tqdm=True)
    return align.PreferenceTrainer(
        model=model, args=arguments, **({"method": align.method("simpo"), "train_dataset": ROWS} | given)
    )


def test_the_trainer_takes_rows_in_any_form(tmp_path, model_folder):
    """A path or a model, a list or a Dataset, a method by its name or of a function: the same losses."""
    losses = [
        [log["loss"] for log in trainer.state.log_history if "loss" in log]
        for trainer in (
            make_trainer(tmp_path, str(model_folder), eval_dataset=ROWS[:2]),
            make_trainer(
                tmp_path,
                tiny_model(initializer_range=0.1),
                train_dataset=Dataset.from_list(ROWS),
                processing_class=tiny_tokenizer(),
                method=align.method(simpo_loss, **align.method("simpo").loss.keywords),
            ),
        )
        if trainer.train()
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 1


def test_the_trainer_says_which_rows_are_wrong(tmp_path, model_folder, monkeypatch):
    """Before weights are read, where the model is a path."""
    monkeypatch.setattr(preparation, "load_causal_lm", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(align.UserError, match=r"^eval_dataset\.jsonl:1: column chosen"):
        make_trainer(tmp_path, str(model_folder), eval_dataset=[{"prompt": "w8"}])
    with pytest.raises(align.UserError, match="processing_class"):
        make_trainer(tmp_path, tiny_model())
    with pytest.raises(align.UserError, match=r"load_dataset\(\"json\", data_files='rows.jsonl'"):
        make_trainer(tmp_path, str(model_folder), train_dataset="rows.jsonl")


def test_the_trainer_takes_a_method_by_its_name(tmp_path, model_folder):
    assert make_trainer(tmp_path, str(model_folder), method="simpo").method.name == "simpo"
    with pytest.raises(align.UserError, match="method is a function: give a name"):
        make_trainer(tmp_path, str(model_folder), method=hinge)


def test_the_trainer_warns_of_nothing_on_a_cpu(tmp_path, model_folder, recwarn):
    trainer = make_trainer(tmp_path, str(model_folder), eval_dataset=ROWS[:2])
    trainer.train()
    assert not [str(warning.message) for warning in recwarn if "pin_memory" in str(warning.message)]


def long_rows(words: int) -> list[dict[str, str]]:
    context = " ".join(f"w{8 + i % 40}" for i in range(words))
    return [{"context": context, "question": "w9", "chosen": "w10", "rejected": "w11"} for _ in range(2)]


def test_contexts_are_cut_to_the_models_window_and_that_is_said(tmp_path):
    """As `align train` cuts them; `max_length` asks for less."""
    model = tiny_model(max_position_embeddings=64)
    given = {"processing_class": tiny_tokenizer(), "train_dataset": long_rows(200)}
    with pytest.warns(
        AlignWarning,
        match=r"train_dataset: The contexts of 2 of 2 rows are cut to the model.s window of 64 tokens: ",
    ):
        trainer = make_trainer(tmp_path, model, **given)
    assert set(trainer.train_dataset["longest_sequence"]) == {64}
    with pytest.warns(AlignWarning, match="max_length=32"):
        trainer = make_trainer(tmp_path, model, max_length=32, **given)
    assert set(trainer.train_dataset["longest_sequence"]) == {32}


def test_rows_longer_than_a_sliding_window_train(tmp_path):
    """As text and tokenised: a window of 16 tokens hides most of a row of 41, and nothing is cut or refused."""
    model = tiny_model("mistral", sliding_window=16)
    trainer = make_trainer(tmp_path, model, processing_class=tiny_tokenizer(), train_dataset=long_rows(40))
    assert min(trainer.train_dataset["longest_sequence"]) > 16
    loss = trainer.train().training_loss
    assert math.isfinite(loss)
    again = make_trainer(
        tmp_path / "again", tiny_model("mistral", sliding_window=16), train_dataset=trainer.train_dataset
    )
    assert again.train().training_loss == loss


# ---- what is shown


@dataclass(frozen=True)
class Inner:
    kind: str
    size: float


@dataclass(frozen=True)
class Shown(Readable):
    path: Path
    before: dict[str, float]
    after: dict[str, float]
    counts: dict[str, int]
    found: list[Inner] = field(default_factory=list)


RESULT = Shown(
    Path("a/b"), {"loss": 0.69314}, {"loss": 0.5}, {"rows": 3}, [Inner("leak", i) for i in range(12)]
)


def test_a_result_is_a_line_a_field():
    lines = str(RESULT).splitlines()
    assert lines[:2] == ["Shown", "  path    a/b"]
    assert [line.split() for line in lines[2:6]] == [
        ["before", "after"],
        ["loss", "0.6931", "0.5"],
        ["counts"],
        ["rows", "3"],
    ]
    assert lines[6:8] == ["  found   12", "    kind leak, size 0"]
    assert lines[-1] == "    … and 2 more"
    assert repr(RESULT).startswith("Shown(path=")


def test_a_notebook_shows_it_so():
    """The two ways in which IPython shows a value and an error."""
    pretty = pytest.importorskip("IPython.lib.pretty")
    assert pretty.pretty(RESULT) == str(RESULT)
    formatted = pytest.importorskip("IPython.core.ultratb").FormattedTB(mode="Plain")
    assert formatted is not None
    assert align.UserError("Set it.")._render_traceback_() == ["UserError: Set it."]


def test_every_result_can_be_read():
    from align.evaluation.suite import Result
    from align.inspect import Inspection
    from align.planning.planner import Plan
    from align.report import Report
    from align.synthesis.pipeline import Summary
    from align.training.finish import TrainResult
    from align.verify import Verification

    for kind in (TrainResult, Summary, Result, Inspection, Verification, Plan, Report):
        assert issubclass(kind, Readable), kind


def test_the_console_of_a_call_is_ours(train, capfd):
    train("quiet", data=ROWS)
    out, err = capfd.readouterr()
    assert all(line.startswith(("held-out at", "step 1/1")) for line in err.splitlines()), err
    assert "reward margin" in out


def test_libraries_speak_to_the_calls_log_and_logging_stays_as_it_was(tmp_path, capfd, recwarn):
    kind, show, root = logging.getLoggerClass(), warnings.showwarning, list(logging.getLogger().handlers)
    older = logging.getLogger("older_library")
    older.addHandler(logging.StreamHandler(sys.stderr))
    with quiet_call(tmp_path / "folder" / "train.log"):
        newer = logging.getLogger("newer_library")
        newer.addHandler(logging.StreamHandler(sys.stderr))
        newer.warning("of no interest")
        logging.getLogger("align.of_ours").addHandler(logging.StreamHandler(sys.stderr))
        logging.getLogger("align.of_ours").warning("of interest")
        older.warning("of the caller's")
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        warnings.warn("ours", AlignWarning, stacklevel=1)
    assert (logging.getLoggerClass(), warnings.showwarning) == (kind, show)
    assert logging.getLogger().handlers == root
    assert capfd.readouterr().err == "of interest\nof the caller's\n"
    assert [str(warning.message) for warning in recwarn] == ["ours"]
    log = (tmp_path / "folder" / "train.log").read_text()
    assert "[newer_library][WARNING] of no interest" in log and "FutureWarning: deprecated" in log
    newer.warning("now of the caller's too")
    assert capfd.readouterr().err == "now of the caller's too\n"


def test_a_silent_call_leaves_no_log(tmp_path):
    with quiet_call(tmp_path / "folder" / "train.log"):
        pass
    assert not list(tmp_path.glob("folder"))


def test_rows_for_evaluate_have_to_be_tokenised(tmp_path, model_folder):
    trainer = make_trainer(tmp_path, str(model_folder), eval_dataset=ROWS[:2])
    with pytest.raises(align.UserError, match="are not tokenised: give them to the trainer"):
        trainer.evaluate(ROWS[:2])


def test_a_trained_adapter_is_not_in_its_reference_and_that_is_said(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], r=2))
    tokenizer = tiny_tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AlignWarning)
        make_trainer(tmp_path, model, method="dpo", processing_class=tokenizer)
    for name, values in model.named_parameters():
        if "lora_B" in name:
            values.data.fill_(0.1)
    with pytest.warns(AlignWarning, match="the reference is the base model without it"):
        make_trainer(tmp_path, model, method="dpo", processing_class=tokenizer)
