"""The glossary: every word with an example in numbers, which are right; and the documentation uses these words."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from align.cli import COMMANDS
from align.longseq import Layout, PackedPrompt
from align.longseq.sharding import balanced_shards, count_tokens, even_shards
from losses import PairLogps, dpo_loss
from tests.doc_blocks import PAGES, ROOT

TEXT = (ROOT / "docs" / "glossary.md").read_text()
ENTRIES = dict(re.findall(r"^### ([^\n]+)\n\n(.*?)(?=\n### |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))
WANTED = (
    *("prompt", "context", "chunk", "question", "answer", "branch", "turn", "packed row", "placeholder"),
    *("owner", "wrapper", "exchange", "lever", "degree", "sealed", "claim", "critical chunk", "stage"),
    *("ledger", "near duplicate", "policy", "reference", "margin", "micro-batch", "global step", "group"),
    *("run folder", "padded rows", "shared-prefix row", "short prompt", "scored token", "suite", "tile"),
)
# Words of elsewhere → the one that is used here. Code, blocks and links are not looked at.
AVOIDED = {
    r"dis-?preferred": "rejected",
    r"(?<!pre-)prefix group": "prompt with its answers",
    r"responses?": "answer",
    r"world size": "number of processes",
    r"context[- ]parallel\w*": "sequence parallelism",
    r"micro ?batch(?!-)": "micro-batch",
    r"near-duplicates?": "near duplicate",
    r"output director(?:y|ies)": "run folder",
}


def test_the_words_are_there_in_order():
    assert set(WANTED) <= set(ENTRIES)
    names = list(ENTRIES)
    assert names == sorted(names, key=str.lower)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_word_has_an_example_in_numbers(name):
    assert re.search(r"\d", ENTRIES[name]), name
    assert len(ENTRIES[name].split()) < 80, f"{name}: a definition, not a page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_one_word_for_one_thing(page):
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", page.read_text(), flags=re.DOTALL)
    for word, ours in AVOIDED.items():
        found = re.search(rf"\b{word}\b", text, flags=re.IGNORECASE)
        assert found is None, f"say «{ours}» for «{found[0] if found else ''}»"


def says(name: str, *parts: str) -> None:
    """The entry has these words."""
    entry = " ".join(ENTRIES[name].split())
    for part in parts:
        assert part in entry, (name, part)


# ---- the examples, computed


def test_owner_and_degree():
    """48 tokens: a prompt of 32, answers of 8 and 8; four processes own 12 each, under either exchange."""
    layout = Layout(prompts=(PackedPrompt(prompt=(0, 32), answers=((32, 40), (40, 48))),))
    source = torch.tensor([31, *range(32, 39), 31, *range(40, 47)])
    for shards in (balanced_shards(layout, 4), even_shards(48, source, 4)):
        assert [count_tokens(spans) for spans in shards] == [12] * 4
    says("owner", "row of 48 tokens at degree 4 each of 4 processes owns 12")
    says("degree", "8 processes at degree 4 are 2 sequence-parallel groups")


def test_rows_of_tokens():
    answers = (4, 2, 5)
    assert (14 + sum(answers), 3 * (14 + max(answers))) == (25, 57)
    says("padded rows", "3 × 19 = 57", "25")
    says("shared-prefix row", f"{1000 + 3 * 50:,}")
    says("branch", f"a branch of {40 + 10 + 40} tokens, of which {40 + 40} are scored")
    says("context", "8,704", f"{16 * 512:,}")
    says("chunk", f"{16 * 512:,}")
    says("scored token", f"{30 + 40} scored tokens")


def test_steps():
    says("global step", f"{8 // 2} × 1 × 8 = {8 // 2 * 8} prompts")
    says("micro-batch", f"2 prompts and {2 * 3} answers")
    rows, processes = 10, 4
    last = rows % processes
    says("placeholder", f"the last step has {last} rows and {processes - last} placeholders")
    says("lever", f"{8192:,} tokens in {8192 // 512} tiles")
    says("tile", "512 and 488")
    says("held-out rows", f"Of 200 rows, `data.eval_size=0.1` holds out {200 // 10}")


def test_rewards():
    """β = 0.1, log-probs −10 and −14: a reward of 0.4; 0.4 less −0.2 is a margin of 0.6."""

    def logps(chosen: float, rejected: float) -> PairLogps:
        one = torch.ones(1, dtype=torch.long)
        return PairLogps(torch.tensor([chosen]), torch.tensor([[rejected]]), one, one[:, None])

    output = dpo_loss(logps(-10.0, -14.0), logps(-14.0, -12.0), beta=0.1)
    assert output.chosen_reward.item() == pytest.approx(0.4)
    assert (output.chosen_reward - output.rejected_reward[:, 0]).item() == pytest.approx(0.6)
    says("reward", "−10 and −14 nats: 0.4")
    says("margin", "Rewards of 0.4 and −0.2 have a margin of 0.6")
    says("NLL", f"{-math.log(0.5):.2f}")


def test_counts_of_the_configuration():
    conf = ROOT / "hydra_conf"
    says("group", f"1 of the {len(list((conf / 'method').glob('*.yaml')))} files")
    suite = yaml.safe_load((conf / "suite" / "retrieval.yaml").read_text())
    sizes = [len(suite["lengths"]), len(suite["depths"]), suite["samples"]]
    says("suite", "{} lengths × {} depths × {} samples = {} prompts".format(*sizes, math.prod(sizes)))
    server = yaml.safe_load((conf / "generator" / "openai.yaml").read_text())
    says("generator", f"{server['concurrency']} calls")
    data = yaml.safe_load((conf / "data" / "default.yaml").read_text())
    says("question", f"{data['keep_tail']}")
    longpo = yaml.safe_load((conf / "pipeline" / "longpo.yaml").read_text())
    says("turn", f"up to {longpo['turns']}")
    command = yaml.safe_load((conf / "synthesize.yaml").read_text())
    says("near duplicate", f"is {command['near_duplicate']} or more")
    weight = yaml.safe_load((conf / "method" / "longpo.yaml").read_text())["loss"]["preference_weight"]
    says("method", f"by {weight}")
    recipe = yaml.safe_load((conf / "experiment" / "logo_paper.yaml").read_text())
    groups = {name for name in recipe if (conf / name).is_dir()}
    says("experiment", f"sets {len(groups)} of them")
    assert groups == {"method", "positions", "model", "data", "trainer"}


# ---- completion, as docs/configuration.md describes it


def complete(line: str, folder: Path) -> list[str]:
    """What TAB offers behind `line`; `align` is a stand-in that says what it was asked."""
    script = folder / "align"
    script.write_text(
        '#!/bin/sh\necho "method=logo method=longpo method=dpo"; echo "$COMP_LINE|$*" > asked\n'
    )
    script.chmod(0o755)
    body = f'source {ROOT}/launchers/completion.bash; COMP_LINE="{line}"; COMP_POINT={len(line)}; _align'
    done = subprocess.run(
        ["bash", "-c", body + '; printf "%s\\n" "${COMPREPLY[@]}"'],
        cwd=folder,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_completion(tmp_path):
    """Commands first; then what Hydra says, which is given the line without the command."""
    assert complete("align ", tmp_path) == list(COMMANDS)
    assert complete("align ev", tmp_path) == ["evaluate"]
    assert not (tmp_path / "asked").exists()
    assert complete("align train method=lo", tmp_path) == ["method=logo", "method=longpo"]
    assert (tmp_path / "asked").read_text() == "align method=lo|train -sc query=bash\n"
    assert complete("align trian method=lo", tmp_path) == []
