"""The group `positions`: its keys, the models that a placement is for, and placements from elsewhere."""

from __future__ import annotations

import dataclasses
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from transformers import Gemma3TextConfig, LlamaConfig

from align.core.errors import UserError
from align.data.placements.e2 import E2
from align.data.placements.logo import Logo
from align.data.placements.randomised import Randomised
from align.data.placements.skip import Skip
from align.data.position_settings import read_positions
from align.data.positions import Drawn, Placed, Placement, PromptParts, place_row
from align.data.positions_of_model import fit_positions
from align.data.settings import DataSettings, PositionSettings
from align.models.reach import Reach, position_factor, position_limit, reach_of
from align.models.settings import ModelSettings, RopeSettings
from align.query_scale.log_length import LogLength
from align.reference.settings import ReferenceSettings
from align.training.method_settings import Needs
from align.training.run import check_positions
from align.training.settings import check_redraw
from align.training.soft_prompts import less_soft_prompt
from tests.data.test_positions import example

# ---- the model


@pytest.mark.parametrize(
    ("reach", "sentence"),
    [
        (
            Reach(16, 1.0),
            r"positions\.factor=20, and the model has a factor of 1: set model\.rope\.type=linear ",
        ),
        (
            Reach(16, 8.0),
            r"the model has a factor of 8: set model\.rope\.type=linear model\.rope\.factor=20\.",
        ),
        (Reach(16, 20.0, scaled=True), r"model\.query_scale would take them for tokens"),
        (Reach(16, None), r"the model has another RoPE: set"),
        (Reach(None, 20.0), r"does not say how many tokens it was made for: set positions\.target_length"),
        (Reach(2**30, 20.0), r"target_length=21474836480 is too large"),
        (Reach(16, 20.0, scaled=True), r"model\.query_scale would take them for tokens: leave out one"),
    ],
)
def test_e2_is_for_linear_rope_of_its_factor(reach: Reach, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        E2().fitted(reach)
    assert E2(target_length=99).fitted(Reach(None, 20.0)) == E2(target_length=99)
    for other in (Logo(), Randomised(), Skip()):
        assert other.fitted(reach) is other


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        (LlamaConfig(), 1.0),
        (LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 20.0, "rope_theta": 1e4}), 20.0),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), None),
        (Gemma3TextConfig(), 1.0),
        (
            Gemma3TextConfig(
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            ),
            None,
        ),
    ],
)
def test_what_a_model_divides_positions_by(config: Any, factor: float | None) -> None:
    assert position_factor(config) == factor


def of_model(folder: Path, **rope: Any) -> ModelSettings:
    settings = LlamaConfig(max_position_embeddings=256, rope_parameters={"rope_theta": 1e4} | rope)
    settings.save_pretrained(folder)
    return ModelSettings(path=str(folder))


def test_the_factor_is_the_checkpoints_or_model_rope(tmp_path: Path) -> None:
    """Either way K is 20 · 256, and the model was made for as many positions."""
    plain = of_model(tmp_path / "plain", rope_type="default")
    linear = of_model(tmp_path / "linear", rope_type="linear", factor=20.0)
    stretched = replace(plain, rope=RopeSettings(type="linear", factor=20.0))
    e2 = PositionSettings(E2())
    for model in (linear, stretched):
        assert fit_positions(e2, model).placement == E2(target_length=5120)
        assert reach_of(model) == Reach(256, 20.0) and position_limit(model) == 5120
    with pytest.raises(UserError, match="positions=e2 takes a linear RoPE"):
        fit_positions(e2, plain)
    assert position_limit(plain) == 256
    assert position_limit(replace(plain, rope=RopeSettings(theta=1e6))) is None
    assert fit_positions(PositionSettings(), ModelSettings(path="nowhere")) == PositionSettings()
    scaled = replace(stretched, query_scale=LogLength())
    assert reach_of(scaled) == Reach(256, 20.0, scaled=True)


def test_a_soft_prompt_takes_positions_too(tmp_path: Path) -> None:
    """20 tokens before each prompt leave 5,120 − 20; of a placement without a bound nothing is taken."""
    model = of_model(tmp_path, rope_type="linear", factor=20.0)
    adapter = types.SimpleNamespace(soft_tokens=20)
    fitted = fit_positions(PositionSettings(E2()), model)
    assert less_soft_prompt(DataSettings(), fitted, adapter)[1].placement == E2(target_length=5100)
    unbound = PositionSettings(Doubled())
    assert less_soft_prompt(DataSettings(), unbound, adapter)[1] == unbound
    with pytest.raises(UserError, match=r"leaves nothing of positions\.target_length=20: take"):
        less_soft_prompt(DataSettings(), PositionSettings(Skip(20)), adapter)


def test_a_reference_reads_the_same_positions(tmp_path: Path) -> None:
    """One without the policy's RoPE would read other distances; where it reads short contexts alone it may."""
    plain = of_model(tmp_path / "plain", rope_type="default")
    policy = replace(plain, rope=RopeSettings(type="linear", factor=20.0))

    def check(**keys: Any) -> None:
        reference = ReferenceSettings(source="frozen", **keys)
        run = types.SimpleNamespace(
            positions=PositionSettings(E2()), model=policy, reference=reference, reference_source="frozen"
        )
        for reads in ("short", "same"):
            check_positions(run, Needs(reference=reads, policy_short=False, nll_scope="none"))  # type: ignore[arg-type]

    check()
    with pytest.raises(UserError, match=r"^The reference reads the policy's rows: positions=e2 takes"):
        check(rope="checkpoint")


def test_a_cache_beside_positions_of_each_epoch() -> None:
    drawn, kept = (PositionSettings(Skip(), redraw=redraw) for redraw in ("epoch", "never"))
    short, same = (
        Needs(reference=reads, policy_short=False, nll_scope="none") for reads in ("short", "same")
    )
    cached = ReferenceSettings(cache="folder")
    for positions, needs, reference in (
        (kept, same, cached),
        (drawn, short, cached),
        (drawn, same, ReferenceSettings()),
        (PositionSettings(redraw="epoch"), same, cached),
    ):
        check_redraw(positions, needs, reference)
    with pytest.raises(UserError, match=r"positions\.redraw=epoch gives rows other positions in each epoch"):
        check_redraw(drawn, same, cached)


# ---- settings, and placements from elsewhere


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        (E2(factor=0), r"positions\.factor=0 is too small"),
        (E2(keep_first=-1), r"positions\.keep_first=-1 is negative"),
        (E2(scales=[]), r"positions\.scales is empty"),
        (E2(scales=[1, 3]), r"positions\.scales has 3, which .*factor=20: take some of 1, 2, 4, 5, 10, 20"),
        (E2(target_length=0), r"positions\.target_length=0 is too small"),
        (Randomised(2**31), r"positions\.target_length=2147483648 is too large"),
        (Skip(chunks=1), r"positions\.chunks=1 leaves nothing to skip"),
    ],
)
def test_keys_out_of_range(placement: Placement, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PositionSettings(placement)


def read(allow: list[str] | None = None, **values: Any) -> PositionSettings:
    return read_positions(OmegaConf.create({"positions": values, "allow_targets": allow or []}))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"mode": "logo"}, r"^positions\.mode is no key any more: write positions=logo where a command"),
        ({"redraw": "daily"}, r"positions\.redraw=daily is not known: use never, epoch"),
        ({"chunk_tokens": 0}, r"positions\.chunk_tokens=0 is too small"),
        ({"chunk_tokens": "many"}, r"positions\.chunk_tokens"),
        ({"target_lenght": 5}, r"positions\.target_lenght is unknown \(did you mean .*target_length"),
        ({"_target_": "align.data.placements.skip.Skip", "draw": "slots"}, r"positions\.draw is unknown"),
        ({"_target_": "align.data.placements.skip.Skip", "chunks": "two"}, r"positions\.chunks=two"),
        ({"_target_": "align.data.placements.skip.Skip", "redraw": 3}, r"positions\.redraw=3 is not known"),
        ({"_target_": "align.data.positions.place_row"}, r"positions\._target_=.* is refused"),
        ({"_target_": "elsewhere.Mine"}, r"positions\._target_=elsewhere\.Mine is refused"),
        ({"target_length": "${nowhere}"}, r"positions.*nowhere"),
    ],
)
def test_what_is_no_setting(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(**values)


def test_recipes_of_logo_hold_where_nothing_is_placed() -> None:
    found = read(target_length=9, draw="uniform", sparse_share=0.5, chunk_tokens=8, redraw="epoch")
    assert found == PositionSettings(chunk_tokens=8, redraw="epoch") and not found.redrawn


@dataclass(frozen=True)
class Doubled:
    """Somebody's placement: every other position, and what a test makes it give instead."""

    target_length: int | None = None
    gives: str = "steps"

    def check(self) -> None: ...

    def fitted(self, reach: Reach) -> Doubled:
        return self

    def place(self, parts: PromptParts, rng: np.random.Generator) -> Any:
        return {
            "steps": Placed(2 * np.arange(parts.tokens), 2),
            "nothing": None,
            "array": np.arange(parts.tokens),
            "short": Placed(np.arange(3)),
            "real": Placed(np.arange(parts.tokens) / 2),
            "falling": Placed(-np.arange(parts.tokens)),
            "still": Placed(np.arange(parts.tokens), 0),
        }[self.gives]


def test_a_placement_from_a_package_of_ones_own(monkeypatch) -> None:
    package = types.ModuleType("elsewhere")
    mine = type("Mine", (Doubled,), {"__module__": "elsewhere"})
    package.Mine = dataclasses.dataclass(frozen=True)(mine)  # type: ignore[attr-defined]
    bare = dict.fromkeys(("check", "fitted", "place"), Doubled.check)
    package.Bare = dataclasses.make_dataclass("Bare", [], namespace=bare | {"__module__": "elsewhere"})  # type: ignore[attr-defined]
    package.__spec__ = types.SimpleNamespace(name="elsewhere")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "elsewhere", package)
    found = read(["elsewhere"], _target_="elsewhere.Mine", target_length=500, chunk_tokens=7)
    assert found.chunk_tokens == 7 and found.placement.target_length == 500  # type: ignore[union-attr]
    row = example([5])
    made = place_row(row, found.placement, Drawn(0, 0, 6), seed=0)  # type: ignore[arg-type]
    assert made.position_ids.tolist() == list(range(0, 28, 2)) and made.largest_position == 26 + 12
    with pytest.raises(UserError, match=r"elsewhere\.Bare: a placement has a field target_length"):
        read(["elsewhere"], _target_="elsewhere.Bare")


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        (Doubled(gives="array"), r"rows\.jsonl:7: Doubled\.place gave no align\.data\.positions\.Placed"),
        (Doubled(gives="short"), r"gave int64 of the shape \(3,\) for 14 tokens"),
        (Doubled(gives="real"), r"gave float64 of the shape"),
        (Doubled(gives="falling"), r"positions that do not increase strictly from 0 or more"),
        (Doubled(gives="still"), r"positions that do not increase strictly"),
        (
            Doubled(target_length=38),
            r"gave positions up to 38, which is not below positions\.target_length=38",
        ),
    ],
)
def test_what_is_no_position_of_each_token_is_refused(placement: Doubled, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        place_row(example([5]), placement, Drawn(0, 0, 6), seed=0)
    assert place_row(example([5]), Doubled(gives="nothing"), Drawn(0, 0, 6), seed=0).drawn is None
