"""Tables of rotary frequencies as functions of numbers: published values, relations between them, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.integrate import solve_ivp

from align.core.errors import UserError
from align.rope_tables.clex import Clex
from align.rope_tables.giraffe import Giraffe
from align.rope_tables.lists import Factors, Frequencies
from align.rope_tables.ntk import Ntk
from align.rope_tables.table import RopeContext, Table

THETA = 10_000.0


def plain(dim: int, theta: float = THETA) -> np.ndarray:
    """θ^(−2i/d)."""
    return theta ** (-np.arange(0, dim, 2) / dim)


def of(table: Table, dim: int = 8, theta: float = THETA) -> np.ndarray:
    table.check()
    return table.frequencies(plain(dim, theta), RopeContext(dim=dim, theta=theta, window=4096))


def close(found: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


# ---- Giraffe, from its released code's formulas


def test_scaled_and_powered_frequencies():
    close(of(Giraffe(scale=4.0)), [0.25, 0.025, 0.0025, 0.00025])
    close(of(Giraffe(power=0.5)), [1, 0.08660254, 0.00707107, 0.0005])
    close(of(Giraffe(power=0.1)), [1, 0.09716417, 0.00933033, 0.00087055])


def test_the_truncated_basis():
    """Λ = 2048: b = 2π/2048 = 3.06796158e-3, b/8 = 3.83495197e-4, ρ = b/16 = 1.91747598e-4."""
    expected = [1, 0.31622777, 0.1, 0.03162278, 0.01, 0.00316228, 2 * math.pi / 2048 / 16, 0]
    close(of(Giraffe(length=2048), dim=16), expected)
    assert expected[6] == pytest.approx(1.91747598e-4, abs=1e-12)


@pytest.mark.parametrize(("length", "kept", "lowered", "stopped"), [(2048, 41, 14, 9), (4096, 46, 14, 4)])
def test_how_much_truncation_keeps_of_llamas_head(length, kept, lowered, stopped):
    found, before = of(Giraffe(length=length), dim=128), plain(128)
    floor = 2 * math.pi / length / 16
    assert (found == before).sum() == kept
    assert (found == floor).sum() == lowered
    assert (found == 0).sum() == stopped


def test_scale_power_and_truncation_follow_one_another():
    """d = 8, /2, power 0.5, Λ = 2048: .5, .04330127, .00353553 stay above b = .00306796; .00025 is below b/8."""
    table = Giraffe(scale=2.0, power=0.5, length=2048)
    close(of(table), [0.5, 0.04330127, 0.00353553, 0.0])
    one, two, three = Giraffe(scale=2.0), Giraffe(power=0.5), Giraffe(length=2048)
    context = RopeContext(dim=8, theta=THETA, window=4096)
    chained = three.frequencies(two.frequencies(one.frequencies(plain(8), context), context), context)
    np.testing.assert_array_equal(of(table), chained)


# ---- NTK


@pytest.mark.parametrize("dim", [4, 8, 64, 128])
@pytest.mark.parametrize("factor", [1.0, 2.0, 7.0])
def test_ntk_is_plain_rope_of_another_base(dim, factor):
    """θ · s^(d/(d−2)): the lowest frequency is divided by s."""
    found = of(Ntk(factor=factor), dim)
    np.testing.assert_allclose(found, plain(dim, THETA * factor ** (dim / (dim - 2))), rtol=1e-12)
    np.testing.assert_allclose(found[-1], plain(dim)[-1] / factor, rtol=1e-12)


def test_ntk_of_one_pair_is_refused():
    with pytest.raises(UserError, match=r"rotates 2 dimensions of a head, and NTK-aware scaling needs 4"):
        of(Ntk(), dim=2)


# ---- CLEX


def network(folder: Path, *, dim: int = 8, zero: bool = False, dtype=torch.float64, act=None) -> Path:
    """A CLEX checkpoint: W_up = 0.1 · sin n [d/2, d], W_down = 0.05 · cos n [d, d/2], n row by row from 1."""
    n = torch.arange(1, dim * dim // 2 + 1, dtype=torch.float64)
    up, down = (0.1 * n.sin()).reshape(dim // 2, dim), (0.05 * n.cos()).reshape(dim, dim // 2)
    weights = {
        "model.clex_layer.proj_func.ode_up_proj": up.to(dtype),
        "model.clex_layer.proj_func.ode_down_proj": (down * (not zero)).to(dtype),
        "model.norm.weight": torch.ones(4),
    }
    save_file(weights, folder / "model.safetensors")
    if act is not None:
        (folder / "config.json").write_text(json.dumps({"rope_scaling": {"type": "clex", "act": act}}))
    return folder


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (1.0, [1, 0.1, 0.01, 0.001]),
        (2.0, [1, 0.06933613, 0.00480750, 0.00033333]),
        (4.0, [1, 0.05227580, 0.00273276, 0.00014286]),
    ],
)
def test_clex_before_training_is_ntk(tmp_path, t, expected):
    """With a network of zeros NTK's factor is α = 2t − 1; at t = 4 the base is 133905.18279407."""
    found = of(Clex(path=str(network(tmp_path, zero=True)), t=t))
    close(found, expected)
    assert np.abs(found - of(Ntk(factor=2 * t - 1))).max() < 2e-10
    if t == 4:
        assert np.abs(found - plain(8, 133905.18279407)).max() < 2e-10


TRAINED = {
    2.0: [1.03144943, 0.06898758, 0.00463560, 0.00032209],
    4.0: [1.09953819, 0.05137878, 0.00243932, 0.00012856],
}


@pytest.mark.parametrize("t", TRAINED)
def test_clex_of_a_trained_network(tmp_path, t):
    folder = network(tmp_path)
    close(of(Clex(path=str(folder), t=t)), TRAINED[t])
    close(of(Clex(path=str(folder / "model.safetensors"), t=t)), TRAINED[t])


@pytest.mark.parametrize("act", ["tanh", "silu"])
def test_clex_against_another_solver(tmp_path, act):
    """scipy's DOP853 on the same equation, written once more, at a t between steps and another θ of the model."""
    dim, theta, t = 8, 1e6, 2.7183
    folder = network(tmp_path, act=act)
    n = np.arange(1, 33)
    up, down = 0.1 * np.sin(n).reshape(4, 8), 0.05 * np.cos(n).reshape(8, 4)
    sigma = {"tanh": np.tanh, "silu": lambda x: x / (1 + np.exp(-x))}[act]

    def slope(at: float, z: np.ndarray) -> np.ndarray:
        alpha = 2 * at - 1
        ntk = np.log(plain(dim, THETA * alpha ** (dim / (dim - 2))))
        return sigma((z + ntk) @ up) @ down - 4 * np.arange(4) / ((dim - 2) * alpha)

    solved = solve_ivp(slope, (1, t), np.log(plain(dim, theta)), method="DOP853", rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        of(Clex(path=str(folder), t=t), theta=theta), np.exp(solved.y[:, -1]), rtol=1e-8
    )


def test_clex_reads_bfloat16_and_one_weight_for_each_layer(tmp_path):
    """Older checkpoints have the network in every layer; unlike ones are refused."""
    network(tmp_path, dtype=torch.bfloat16)
    found = of(Clex(path=str(tmp_path), t=4.0))
    np.testing.assert_allclose(found, TRAINED[4.0], rtol=5e-3)
    up = torch.ones(4, 8)
    layers = {f"layers.{i}.ode_up_proj": up * (1 + i) for i in range(2)}
    save_file(layers, tmp_path / "more.safetensors")
    with pytest.raises(UserError, match=r"3 unlike weights …ode_up_proj"):
        of(Clex(path=str(tmp_path)))


def test_clex_refuses_what_is_no_such_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"is no safetensors file and no folder with one"):
        Clex(path=str(tmp_path)).check()
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no weight …ode_up_proj"):
        of(Clex(path=str(tmp_path)))
    network(tmp_path, act="tanh")
    with pytest.raises(UserError, match=r"weights of \[4, 8\] and \[8, 4\], and this model's 8 frequencies"):
        of(Clex(path=str(tmp_path)), dim=16)
    with pytest.raises(UserError, match=r"activation=silu, and .*config\.json says tanh"):
        Clex(path=str(tmp_path), activation="silu").check()
    for t in (0.5, 1e9, math.nan):
        with pytest.raises(UserError, match=r"table\.t=.* has to lie between 1 and 1000"):
            Clex(path=str(tmp_path), t=t).check()
    config = {"rope_parameters": {"rope_type": "clex", "max_factor": 16, "act": "tanh"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    Clex(path=str(tmp_path), t=16.0).check()
    with pytest.raises(UserError, match=r"t=17\.0 is beyond the 16 windows \(max_factor\)"):
        Clex(path=str(tmp_path), t=17.0).check()
    with pytest.raises(UserError, match=r"base=0\.0 has to be above 0"):
        Clex(path=str(tmp_path), base=0.0).check()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"activation=relu is not known: use tanh, silu"):
        Clex(path=str(tmp_path), activation="relu").check()


# ---- lists


@pytest.fixture
def written(tmp_path):
    def write(content, name: str = "list.json") -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_frequencies_as_they_are(written):
    values = [1.0, 0.07, 0.004, 0]
    close(of(Frequencies(values=values)), values)
    close(of(Frequencies(path=written(values))), values)


FACTORS = [1.0, 1.25, 2, 4.0]
HOLDERS = {
    "a list": (FACTORS, "list.json"),
    "an object": ({"long_factor": FACTORS, "short_factor": [1] * 4}, "list.json"),
    "a config.json of today": ({"rope_parameters": {"long_factor": FACTORS}}, "config.json"),
    "an older config.json": (
        {"rope_parameters": None, "rope_scaling": {"long_factor": FACTORS}},
        "config.json",
    ),
    "the search's CSV": ("1.0,1.25,2,4.0\n" * 3, "scale.csv"),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_factors_divide(written, holder):
    content, name = HOLDERS[holder]
    close(of(Factors(path=written(content, name))), [1, 0.08, 0.005, 0.00025])
    close(of(Factors(values=FACTORS)), [1, 0.08, 0.005, 0.00025])


def test_the_other_list_of_a_checkpoint(written):
    path = written({"long_factor": FACTORS, "short_factor": [2] * 4})
    close(of(Factors(path=path, key="short_factor")), [0.5, 0.05, 0.005, 0.0005])


NO_LISTS = [
    (Frequencies(), r"set model\.rope\.table\.path=FILE or"),
    (Frequencies(path="x.json", values=[1.0]), r"takes its numbers from one place"),
    (
        Frequencies(values=[1, 0.1]),
        r"has 2 numbers, and this model's heads rotate 8 dimensions, which need 4",
    ),
    (Frequencies(values=[1, 0.1, -0.01, 0]), r"number 3 of its list is -0\.01; give one from 0 on"),
    (Frequencies(values=[1, float("nan"), 0, 0]), r"number 2 of its list is nan"),
    (Frequencies(path="none.json"), r"path=none\.json is no file that can be read"),
    (Factors(values=[1.0] * 5), r"has 5 numbers"),
    (Factors(values=[1, 0, 1, 1]), r"number 2 of its list is 0; give one above 0"),
    (Factors(path="none.csv"), r"path=none\.csv is no file that can be read"),
    (Giraffe(), r"changes no frequency: set its length"),
    (Giraffe(scale=0.5), r"scale=0\.5 has to be 1 or more"),
    (Giraffe(power=-1.0), r"power=-1\.0 has to be 0 or more"),
    (Giraffe(length=0), r"length=0 is no number of tokens"),
    (Ntk(factor=0.5), r"factor=0\.5 has to be 1 or more"),
]


@pytest.mark.parametrize(("table", "sentence"), NO_LISTS, ids=[sentence for _, sentence in NO_LISTS])
def test_what_gives_no_table_is_refused(table, sentence):
    with pytest.raises(UserError, match=sentence):
        of(table)


NO_FILES = [
    ("[1, 0.1", "list.json", r"cannot be read as JSON"),
    ({"short_factor": FACTORS}, "list.json", r"has to hold a list, or an object with a list long_factor"),
    ([1, "a", 1, 1], "list.json", r"number 2 of its list is a; give one above 0"),
    ("1,2\n1,3\n", "scale.csv", r"has 2 unlike lines"),
    ("1,x\n", "scale.csv", r"has to hold numbers between commas"),
]


@pytest.mark.parametrize(("content", "name", "sentence"), NO_FILES, ids=[case[2] for case in NO_FILES])
def test_a_file_without_factors_is_refused(written, content, name, sentence):
    with pytest.raises(UserError, match=sentence):
        Factors(path=written(content, name)).check()


def test_frequencies_are_a_list_and_nothing_else(written):
    with pytest.raises(UserError, match=r"has to hold a list\."):
        Frequencies(path=written({"long_factor": FACTORS})).check()


def test_no_table_changes_what_it_is_given():
    before = plain(8)
    context = RopeContext(dim=8, theta=THETA, window=4096)
    for table in (Giraffe(scale=2.0, power=0.5, length=64), Ntk(), Factors(values=FACTORS)):
        given = before.copy()
        replace(table).frequencies(given, context)
        np.testing.assert_array_equal(given, before)
