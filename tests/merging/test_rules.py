"""Each rule of the group `combine` on plain tensors: published and derived values, in float64 to 1e-8."""

from __future__ import annotations

import math
import re
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch

from align.merging.average import Average, Interpolate
from align.merging.half_reset import HalfReset
from align.merging.slerp import Slerp, slerp
from align.merging.task_vectors import DareLinear, DareTies, TaskArithmetic, Ties, pruned

FIRST = [[0.4, 0.0], [-0.2, 0.8]]
SECOND = [[0.0, -0.6], [0.2, 0.4]]
ROOT = Path(__file__).parents[2]


def test_the_documentation_lists_every_rule_with_its_paper():
    """As the YAML and the class, whose `source` goes into cards, have it."""
    rows = re.findall(
        r"^\| `(\w+)` \|.*\|.*abs/([\d.]+)\)", (ROOT / "docs" / "merging.md").read_text(), flags=re.M
    )
    files = {path.stem: path.read_text() for path in (ROOT / "hydra_conf" / "combine").glob("*.yaml")}
    assert sorted(name for name, _ in rows) == sorted(files)
    for name, paper in rows:
        target = re.search(r"_target_: (\S+)", files[name])
        assert target is not None and paper in files[name]
        assert resolve_name(target[1]).source == f"arXiv {paper}"


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def merged(rule, *models, base=None, name="w", seed=0) -> torch.Tensor:
    rule.check()
    rule.fit(len(models), base=base is not None)
    given = [tensor(values) for values in models]
    start = None if base is None else tensor(base)
    before = [each.clone() for each in given]
    result = rule.over({name: given[0].shape}, seed)(name, given, start)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))
    return result


def equal(actual: torch.Tensor, expected, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def test_average():
    equal(merged(Average(), FIRST, SECOND), [[0.2, -0.3], [0.0, 0.6]])
    equal(merged(Average(weights=[3.0, 1.0]), FIRST, SECOND), [[0.3, -0.15], [-0.1, 0.7]])
    assert Average(weights=[3.0, 1.0]).linear(2) == [0.75, 0.25]


def test_interpolate():
    """[0.5, 1] to [1, -1]: half way [0.75, 0], and half beyond it [1.25, -2]."""
    start, end = [0.5, 1.0], [1.0, -1.0]
    for weight, expected in ((0.0, start), (0.5, [0.75, 0.0]), (1.0, end), (1.5, [1.25, -2.0])):
        equal(merged(Interpolate(weight=weight), end, base=start), expected)


def test_task_arithmetic_gives_pefts_values():
    """objectives: differences weighted by one half each."""
    rule = TaskArithmetic(weights=[0.5, 0.5])
    equal(merged(rule, FIRST, SECOND, base=np.zeros((2, 2))), [[0.2, -0.3], [0.0, 0.6]])
    base = np.array([[1.0, 2.0], [3.0, 4.0]])
    shifted = merged(rule, base + FIRST, base + SECOND, base=base)
    equal(shifted, base + np.array([[0.2, -0.3], [0.0, 0.6]]))
    equal(merged(TaskArithmetic(weights=[-1.0]), base + FIRST, base=base), base - np.array(FIRST))


def test_ties_gives_pefts_values():
    """Half of each kept: 0.4 and 0.8; -0.6 and 0.4. Both have the sign of the last sum: its mean is 0.6."""
    base = np.array([[1.0, 2.0], [3.0, 4.0]])
    rule = Ties(density=0.5)
    equal(merged(rule, base + FIRST, base + SECOND, base=base), base + np.array([[0.4, -0.6], [0.0, 0.6]]))


def test_ties_elects_a_sign():
    """All kept: +0.3, +0.1, -0.2 sum to +0.2, so that the mean is that of the first two; weights come behind."""
    models = [[0.3], [0.1], [-0.2]]
    equal(merged(Ties(density=1.0), *models, base=[0.0]), [0.2])
    equal(merged(Ties(density=1.0, weights=[1.0, 3.0, 1.0]), *models, base=[0.0]), [0.3])
    equal(merged(Ties(density=1.0), [5.0], [5.0], base=[5.0]), [5.0])


def test_dare_drops_at_random_and_keeps_the_mean():
    """Of 200,000 differences of 1 a quarter is kept, each as 4; another tensor, model or seed drops others."""
    ones = torch.ones(200_000, dtype=torch.float64)
    kept = pruned(ones, 0.25, "random", seed=3)
    assert set(kept.tolist()) == {0.0, 4.0}
    assert float(kept.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(3 / 200_000))
    base = np.zeros(64)
    rule = DareLinear(density=0.5, weights=[1.0, 1.0])
    one = merged(rule, base + 1, base + 1, base=base)
    assert torch.equal(one, merged(rule, base + 1, base + 1, base=base))
    assert not torch.equal(one, merged(rule, base + 1, base + 1, base=base, seed=1))
    assert not torch.equal(one, merged(rule, base + 1, base + 1, base=base, name="v"))
    assert set(one.tolist()) == {0.0, 2.0, 4.0}  # 2 where one of the models kept it: each draws for itself


def test_dare_leaves_torchs_random_numbers_alone():
    before = torch.get_rng_state()
    merged(DareLinear(), np.ones(8), base=np.zeros(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_dare_with_density_one_is_task_arithmetic_and_ties():
    base = np.array([[1.0, 2.0], [3.0, 4.0]])
    models = (base + FIRST, base + SECOND)
    equal(merged(DareLinear(density=1.0), *models, base=base), merged(TaskArithmetic(), *models, base=base))
    equal(merged(DareTies(density=1.0), *models, base=base), merged(Ties(density=1.0), *models, base=base))


def test_dare_ties_by_hand():
    """What each model keeps, from the same draws; then the sign of the sum, and the mean of those that have it."""
    base, models = np.zeros(1000), [np.linspace(-1, 1, 1000), np.linspace(1, -0.5, 1000)]
    found = merged(DareTies(density=0.5), *models, base=base)
    drawn = merged(DareLinear(density=0.5, weights=[1.0, 0.0]), *models, base=base).numpy()
    other = merged(DareLinear(density=0.5, weights=[0.0, 1.0]), *models, base=base).numpy()
    sign = np.where(drawn + other >= 0, 1.0, -1.0)
    agreed = np.stack([np.sign(drawn) == sign, np.sign(other) == sign])
    expected = (np.stack([drawn, other]) * agreed).sum(0) / np.maximum(agreed.sum(0), 1)
    equal(found, expected)


def test_slerp_gives_control_llms_values():
    """To 7 digits; of their rows the divisor is sin θ + 1e-6, as these numbers show, and ours is sin θ alone."""
    first, second = tensor([1.0, 2.0, -1.0, 0.5]), tensor([0.8, 2.5, -0.5, 0.0])
    angle = math.acos(float(first @ second / first.norm() / second.norm()))
    assert angle == pytest.approx(0.33900416, abs=1e-8)
    equal(slerp(first, second, 0.5), [0.91308549, 2.28271373, -0.76090458, 0.25363486], 1.1e-7)
    equal(slerp(first, second, 0.5), (first + second) / (2 * math.cos(angle / 2)), 1e-15)
    rows, others = tensor([[1.0, 0.0], [0.6, 0.8]]), tensor([[0.0, 1.0], [0.8, 0.6]])
    found = slerp(rows, others, 0.5)
    equal(found, np.full((2, 2), math.sqrt(0.5)))
    released = found * tensor([[1 / (1 + 1e-6)], [0.28 / (0.28 + 1e-6)]])
    equal(released, [[0.70710607] * 2, [0.70710426] * 2], 1e-8)


def test_slerp_falls_back_for_the_parallel_vector_alone():
    """The released code takes the straight line for all vectors as soon as one is parallel: [0.5, 0.5] in row 1."""
    first = tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    second = tensor([[0.0, 1.0], [2.0, 4.0], [-1.0, 0.0], [3.0, 1.0]])
    expected = [[math.sqrt(0.5)] * 2, [1.5, 3.0], [0.0, 0.0], [1.5, 0.5]]
    equal(slerp(first, second, 0.5), expected)
    equal(slerp(first, second, 0.0), first)
    equal(slerp(first, second, 1.0), second)


def test_the_rule_takes_a_tensor_as_one_vector():
    """[[1, 0], [0, 0]] and [[0, 0], [0, 1]] are orthogonal as vectors of 4; each row alone would be on a line."""
    found = merged(Slerp(), [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])
    equal(found, [[math.sqrt(0.5), 0.0], [0.0, math.sqrt(0.5)]])
    equal(
        merged(Slerp(weight=0.25), [0.0, 1.0], base=[1.0, 0.0]),
        [math.sin(3 * math.pi / 8), math.sin(math.pi / 8)],
    )


def test_half_reset_sets_what_is_frozen_back():
    """The trained half stays, here of four layers' only matrices; published values with the mask that was drawn."""
    trained, start = [0.3, -0.7, 1.1, 0.2], [0.1, -0.5, 1.0, 0.6]
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    shapes = dict.fromkeys(names, (1, 1))
    drawn = set()
    for seed in range(40):
        rule = HalfReset(scope="layer").over(shapes, seed)
        found = [
            float(rule(n, [tensor([a])], tensor([b]))) for n, a, b in zip(names, trained, start, strict=True)
        ]
        kept = [value == a for value, a in zip(found, trained, strict=True)]
        assert sum(kept) == 2 and all(k or v == b for k, v, b in zip(kept, found, start, strict=True))
        drawn.add(tuple(kept))
        if kept == [True, False, True, False]:
            assert found == [0.3, -0.5, 1.1, 0.6]
            penalty = sum((a - v) ** 2 for a, v in zip(trained, found, strict=True))
            assert penalty == pytest.approx(0.2, abs=1e-8)
    assert len(drawn) == 6
