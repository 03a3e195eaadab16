"""`align export`: the merged model computes what the adapter model does, and the card has the facts and no secret."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import cli
from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.models.loading import load_causal_lm
from align.models.settings import ModelSettings, RopeSettings
from align.rope_tables.giraffe import Giraffe
from align.rope_tables.lists import Factors
from align.runs import exit_codes
from align.runs.exclusive import exclusive
from align.runs.folder import local_paths, note_local_paths
from align.training.card_words import change
from align.training.model_card import model_card, public_name
from align.training.trained_policy import merged_model, read_policy
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

OWN_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>"
    "{% endfor %}"
)
IDS = torch.arange(8, 40)[None]


def run_command(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["align", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    return code, *capfd.readouterr()


def make_run(
    folder: Path, *, rope: dict | None = None, lora: dict | None = None, **overrides
) -> torch.nn.Module:
    """A run folder as training leaves it, with moved weights; returns the trained model."""
    tiny_model(**overrides).save_pretrained(folder / "base")
    settings = ModelSettings(
        path=str(folder / "base"),
        dtype="float32",
        adapter=Lora(**lora) if lora else None,
        rope=RopeSettings(**(rope or {})),
    )
    model = add_adapter(load_causal_lm(settings), settings.adapter)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder / "run" / "model")
    tiny_tokenizer().save_pretrained(folder / "run" / "model")
    OmegaConf.save(
        {"model": OmegaConf.structured(replace(settings, adapter=None))}, folder / "run" / "config.yaml"
    )
    return model.eval()


VARIANTS = {
    "lora": {"lora": {"r": 4}},
    "embedding and norms": {"lora": {"r": 4, "modules_to_save": ["embed_tokens", "norm"]}},
    "tied embedding": {"lora": {"r": 4, "modules_to_save": ["embed_tokens"]}, "tie_word_embeddings": True},
    "rope": {"lora": {"r": 4}, "rope": {"type": "yarn", "factor": 4.0, "theta": 1e6}},
    "dynamic rope": {"lora": {"r": 4}, "rope": {"type": "dynamic", "factor": 4.0, "length": 12288}},
    "all parameters": {"rope": {"type": "dynamic", "factor": 4.0, "length": 12288}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_model_computes_the_same(name, tmp_path):
    """Merged, saved and read by transformers alone: logits within 1e-5 of the adapter model's largest."""
    model = make_run(tmp_path, **VARIANTS[name])
    merged_model(read_policy(tmp_path / "run")).save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in key for key in again.state_dict())
    with torch.no_grad():
        expected, actual = model(input_ids=IDS).logits, again(input_ids=IDS).logits
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert again.config.use_cache


def make_table_run(folder: Path, *, table: dict, lora: dict | None) -> torch.nn.Module:
    """As `make_run`, with `model.rope.type=table` by the configuration's own words."""
    kind, keys = table["_target_"], {name: value for name, value in table.items() if name != "_target_"}
    made = {"align.rope_tables.giraffe.Giraffe": Giraffe, "align.rope_tables.lists.Factors": Factors}[kind]
    model = make_run(folder, rope={"type": "table", "table": made(**keys)}, lora=lora)
    config = OmegaConf.load(folder / "run" / "config.yaml")
    config.model.rope.table = table
    OmegaConf.save(OmegaConf.merge(config, RUN_CONFIG), folder / "run" / "config.yaml")
    return model


RUN_CONFIG = {"method": {"name": "dpo"}, "data": {"path": "rows"}, "trainer": {}, "allow_targets": ["os"]}
TRUNCATED = {"_target_": "align.rope_tables.giraffe.Giraffe", "length": 64}


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["all parameters", "lora"])
def test_an_export_keeps_the_table_of_frequencies(tmp_path, monkeypatch, capfd, lora):
    """As `longrope` with equal lists, read by transformers alone; the card says which table it was."""
    model = make_table_run(tmp_path, table=TRUNCATED, lora=lora)
    output = tmp_path / "exported"
    code, _, said = run_command(monkeypatch, capfd, "export", f"path={tmp_path / 'run'}", f"output={output}")
    assert code == 0, said
    again = AutoModelForCausalLM.from_pretrained(output)
    assert again.config.rope_parameters == model.config.rope_parameters
    assert again.config.rope_parameters["rope_type"] == "longrope"
    with torch.no_grad():
        expected, actual = model(input_ids=IDS).logits, again(input_ids=IDS).logits
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert "| model.rope.table.length | 64 |" in (output / "README.md").read_text()


def test_a_whole_model_needs_no_table_any_more_and_an_adapter_does(tmp_path):
    """Its list has gone with the machine that trained; a target of the run's own allowing is none of the reader's."""
    path = tmp_path / "factors.json"
    path.write_text("[1, 1, 1, 1, 2, 2, 2, 2]")
    table = {"_target_": "align.rope_tables.lists.Factors", "path": str(path)}
    for name, lora in (("whole", None), ("adapter", {"r": 4})):
        make_table_run(tmp_path / name, table=table, lora=lora)
    path.unlink()
    rope = merged_model(read_policy(tmp_path / "whole" / "run")).config.rope_parameters
    assert rope["long_factor"] == [1.0] * 4 + [2.0] * 4
    with pytest.raises(UserError, match=r"factors\.json is no file that can be read"):
        read_policy(tmp_path / "adapter" / "run")
    config = OmegaConf.load(tmp_path / "adapter" / "run" / "config.yaml")
    config.model.rope.table = {"_target_": "os.system"}
    OmegaConf.save(config, tmp_path / "adapter" / "run" / "config.yaml")
    with pytest.raises(UserError, match=r"_target_=os\.system is refused; targets come from align,"):
        read_policy(tmp_path / "adapter" / "run")
    with pytest.raises(UserError, match=r"_target_=os\.system is refused"):
        read_policy(tmp_path / "adapter" / "run", allow_targets=["os", "posix"])


def test_the_adapter_folder_alone_gives_the_trained_model(tmp_path):
    """With a tied embedding beside LoRA, which a loader could untie."""
    model = make_run(tmp_path, **VARIANTS["tied embedding"])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(base, tmp_path / "run" / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_dtype_of_the_weights(tmp_path):
    make_run(tmp_path, lora={"r": 4})
    policy = read_policy(tmp_path / "run")
    assert merged_model(policy).dtype is torch.float32
    assert merged_model(policy, "bfloat16").dtype is torch.bfloat16


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(8, 128, count))

    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": words(20), "chosen": words(6), "rejected": [words(5), words(7)]}) + "\n"
            for _ in range(8)
        )
    )
    return path


SECRETS = {"WANDB_API_KEY": "wandb-5f3c9", "OPENAI_API_KEY": "sk-5f3c9", "HF_TOKEN": "hf_5f3c9"}


def leaks(*folders: Path) -> list[Path]:
    """Files that hold the value of a key of the environment."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(key.encode() in path.read_bytes() for key in SECRETS.values())]


def test_train_then_export(monkeypatch, capfd, tmp_path, rows):
    """The commands, one after the other; the folder is what a user publishes. Keys of the environment stay there."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    save_tiny(tmp_path / "secret-home" / "base")
    run, output = tmp_path / "run", tmp_path / "published"
    template = tmp_path / "own.jinja"
    template.write_text(OWN_TEMPLATE)
    code, out, err = run_command(
        monkeypatch,
        capfd,
        "train",
        f"model.path={tmp_path / 'secret-home' / 'base'}",
        f"data.path={rows}",
        f"output={run}",
        "data.eval_size=2",
        f"data.chat_template={template}",
        "method=logo",
        "method.loss.beta=2.5",
        "model.lora.r=4",
        "trainer.max_steps=2",
        "trainer.learning_rate=0.01",
        "trainer.save_steps=1",
        "trainer.use_cpu=true",
    )
    assert code == 0, err
    noted = json.loads((run / "local_paths.json").read_text())["paths"]
    assert {str(rows), str(tmp_path / "secret-home" / "base")} <= set(noted)
    assert {"config.yaml", "results.json", "checkpoint-2"} <= {path.name for path in run.iterdir()}
    assert not leaks(tmp_path)
    assert not any(value in out + err for value in SECRETS.values())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["trainer"]["hub_token"] = "hf_abc"  # as a configuration saved by another tool may have it
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    code, out, err = run_command(monkeypatch, capfd, "export", f"path={run}", f"output={output}")
    assert code == 0, err
    assert str(output) in out
    assert not leaks(run, output)
    assert not any(value in out + err for value in SECRETS.values())
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        path.name for path in output.iterdir()
    }
    assert AutoTokenizer.from_pretrained(output).eos_token == "<|im_end|>"

    card = (output / "README.md").read_text()
    results = json.loads((run / "results.json").read_text())
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["tags"][-1] == "logo"
    assert "base_model" not in header  # a local folder is no Hub id
    for fact in (
        "# published",
        "| loss.beta | 2.5 |",
        "| path | rows.jsonl |",
        "| model.lora.r | 4 |",
        "| trainer.learning_rate | 0.01 |",
        "| seed | 42 |",
        f"| loss | {results['before']['eval_loss']:.4f} | {results['after']['eval_loss']:.4f} |",
        f"| tokens trained on | {results['training']['num_tokens']:.0f} |",
    ):
        assert fact in card
    for key, value in results["data"].items():
        if not isinstance(value, dict):
            assert f"| {key} | {value} |" in card
    assert "Measured on 2 rows that were held out of training." in card
    assert card.index("## Use") < card.index("## Settings")
    (tmp_path / "document.txt").write_text("w8 w9 w10")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})  # its example of use runs as it stands
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template == OWN_TEMPLATE
    assert "hf_abc" not in card
    assert str(tmp_path) not in card and "secret-home" not in card

    code, _, err = run_command(monkeypatch, capfd, "export", f"path={run}", f"output={output}")
    assert code == exit_codes.USAGE
    assert "is there and not empty" in err

    first = tmp_path / "first"
    half = tmp_path / ".first.unfinished" / "first" / "half.safetensors"  # as a killed export leaves it
    half.parent.mkdir(parents=True)
    half.touch()
    with exclusive(half.parents[1]):
        code, _, err = run_command(
            monkeypatch, capfd, "export", f"path={run}/checkpoint-1", f"output={first}"
        )
    assert (code, "in use by another run" in err, half.exists()) == (exit_codes.USAGE, True, True)
    code, _, err = run_command(monkeypatch, capfd, "export", f"path={run}/checkpoint-1", f"output={first}")
    assert code == 0, err
    assert not half.parents[1].exists() and not (first / half.name).exists()
    one, two = (AutoModelForCausalLM.from_pretrained(folder) for folder in (first, output))
    assert not torch.equal(one(input_ids=IDS).logits, two(input_ids=IDS).logits)
    assert "Metrics" not in (first / "README.md").read_text()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "is no run of `align train`"),
        ({"config.yaml": "model: {}\n"}, "holds no finished policy"),
        ({"config.yaml": "model: [\n", "model/config.json": "{}"}, "cannot be read as YAML"),
        ({"config.yaml": "seed: 1\n", "model/config.json": "{}"}, "holds no configuration"),
        (
            {"config.yaml": "model: {}\n", "model/config.json": "{}", "results.json": "{"},
            "results.json cannot be read",
        ),
        (
            {"config.yaml": "model: {}\ndata: {}\nmethod: {}\ntrainer: {}\n", "model/config.json": "{}"},
            "config.yaml has no method.name, which the model card states",
        ),
        (
            {"config.yaml": "model: {}\n", "model/config.json": "{}"},
            "has no method and no data and no trainer",
        ),
    ],
    ids=["no run", "not finished", "no YAML", "no model", "no JSON", "no method", "no group"],
)
def test_what_is_no_run_is_refused(monkeypatch, capfd, tmp_path, files, sentence):
    run = tmp_path / "run"
    run.mkdir()
    for name, content in files.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    code, _, err = run_command(monkeypatch, capfd, "export", f"path={run}", f"output={tmp_path / 'out'}")
    assert code == exit_codes.USAGE
    said = [line for line in err.splitlines() if line.startswith("align export: ")]
    assert len(said) == 1 and sentence in said[0]
    assert not (tmp_path / "out").exists()


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("part", ["model", "tokenizer", "base of an adapter"])
def test_code_in_a_run_folder_needs_the_word_of_whoever_exports(monkeypatch, capfd, tmp_path, part):
    """The run's configuration says `trust_remote_code: true`, as whoever made the folder wrote it."""
    make_run(tmp_path, lora={"r": 4} if "adapter" in part else None)
    run, mark = tmp_path / "run", tmp_path / "ran"
    weights = tmp_path / "base" if "adapter" in part else run / "model"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"method": {"name": "logo"}, "data": {"path": "rows.jsonl"}, "trainer": {}}
    settings["model"]["trust_remote_code"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    name = "tokenizer_config.json" if part == "tokenizer" else "config.json"
    content = json.loads((weights / name).read_text())
    if part == "tokenizer":
        content |= {
            "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
            "tokenizer_class": "OwnTokenizer",
        }
    else:
        auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        content |= {"auto_map": auto_map, "model_type": "own"}
    (weights / name).write_text(json.dumps(content))
    (weights / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    command = ("export", f"path={run}", f"output={tmp_path / 'out'}")
    code, _, err = run_command(monkeypatch, capfd, *command)
    assert not mark.exists()
    assert code == exit_codes.USAGE and "Traceback" not in err
    assert "allow it by trust_remote_code=true" in err and not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        _, _, err = run_command(monkeypatch, capfd, *command, "trust_remote_code=true")
    assert "trust_remote_code=true runs Python code that comes with" in err
    assert mark.exists()


CONFIG = {
    "method": {
        "name": "mine",
        "loss": {"_target_": "mine.loss", "_partial_": True, "api_key": "k-1", "beta": 2.0},
    },
    "model": {"path": "Qwen/Qwen3-8B", "lora": {"r": 8}, "rope": {"theta": None, "type": "yarn"}},
    "data": {"path": "someone/rows", "eval_path": "/home/jane/held.jsonl"},
    "reference": {"source": "frozen", "model": "/home/jane/reference", "cache": "/home/jane/cache"},
    "trainer": {"learning_rate": 5e-7, "hub_token": "hf_1", "run_name": "jane's"},
    "wandb": {"password": "p"},
}


def test_card_states_only_what_may_be_public():
    card = model_card(CONFIG, {}, name="model")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "Qwen/Qwen3-8B"
    for private in ("jane", "k-1", "hf_1", "password", "cache"):
        assert private not in card
    for fact in (
        "| loss.beta | 2.0 |",
        "| path | someone/rows |",
        "| eval_path | held.jsonl |",
        "| reference.model | reference |",
        "| model.rope.type | yarn |",
        "| trainer.learning_rate | 5e-07 |",
    ):
        assert fact in card
    assert "theta" not in card


@pytest.mark.parametrize("told_by", ["note", "here", "where the run began"])
def test_a_private_folder_of_two_parts_is_no_hub_id(tmp_path, monkeypatch, told_by):
    """`private_dir/secret-model` looks like one; whoever exports may stand elsewhere."""
    home = tmp_path / "home"
    run = home / "outputs" / "first"
    files = ("private_dir/secret-model", "private_dir/secret-reference", "private_dir/rows")
    for folder in ("outputs/first", *files):
        (home / folder).mkdir(parents=True)
    config = CONFIG | {
        "output": "outputs/first",
        "model": {"path": files[0]},
        "reference": {"model": files[1]},
        "data": {"path": files[2], "eval_path": "someone/rows"},
        "positions": {"mode": "logo", "table": ["private_dir/rows", "own/table.txt"]},
    }
    monkeypatch.chdir(home)
    if told_by == "note":
        note_local_paths(run, OmegaConf.create(config))
        run = run.rename(tmp_path / "moved")
    if told_by != "here":
        monkeypatch.chdir(tmp_path)
    card = model_card(config, {}, name="model", local=local_paths(run, config))
    assert "private_dir" not in card and "base_model" not in card and "own/" not in card
    for fact in ("| path | rows |", "| reference.model | secret-reference |", "| eval_path | someone/rows |"):
        assert fact in card
    assert "secret-model, trained with" in card


SHARES = {"eval_rewards/accuracies": 0.25, "eval_rewards/margins": -0.5, "eval_loss": 0.9}


@pytest.mark.parametrize(
    ("before", "sentences"),
    [
        (
            SHARES,
            ["had it in 25.0% (95 % interval over rows: 7.1% to 59.1%) before", "from -0.5000 to 0.4000"],
        ),
        (
            SHARES | {"eval_rewards/margins": 0.0},
            [
                "in 75.0% (95 % interval over rows: 40.9% to 92.9%)",
                "before it, both answers had the same reward",
            ],
        ),
        ({"eval_loss": 0.9}, ["held out of training. The loss went from 0.9000 to 0.7000.\n"]),
        ({"eval_loss": None}, []),
    ],
)
def test_card_says_what_training_changed(before, sentences):
    after = {"eval_rewards/accuracies": 0.75, "eval_rewards/margins": 0.4, "eval_loss": 0.7}
    said = change({"before": before, "after": after, "data": {"eval_rows": 8}})
    assert all(sentence in said for sentence in sentences)
    assert bool(said) == bool(sentences)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"template_kwargs": {"enable_thinking": False}},
            "add_generation_prompt=True, enable_thinking=False, ",
        ),
        ({"chat": "never"}, 'inputs = tokenizer(prompt, return_tensors="pt")'),
        ({"system": "Be brief."}, '[{"role": "system", "content": \'Be brief.\'}, {'),
        ({"template": "{question} {context}"}, "prompt = '{question} {context}'.replace("),
    ],
)
def test_card_asks_as_the_rows_did(data, expected):
    card = model_card(CONFIG | {"data": CONFIG["data"] | data}, {}, name="model")
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert expected in code


def test_a_mean_that_is_not_finite_stands_in_the_card():
    results = {"before": {"eval_loss": 0.5}, "after": {"eval_loss": None}}
    assert "| loss | 0.5000 | not finite |" in model_card(CONFIG, results, name="model")


def test_public_names(tmp_path):
    assert public_name("embedded") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("owner/name") == "owner/name"
    assert public_name(str(tmp_path / "mine")) == "mine"
    for path in (
        "data/rows.jsonl",
        "data/rows.jsonl.gz",
        "a/b/rows",
        "./data/rows",
        "~/rows",
        "C:\\me\\rows",
        "me/rows/",
    ):
        assert public_name(path) in ("rows", "rows.jsonl", "rows.jsonl.gz")
