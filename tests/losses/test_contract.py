"""What every method has to keep, found from `hydra_conf/method/*.yaml`: a new file is tested by itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

import hydra_conf
from align.training.methods import Method, load_method
from losses import LossOutput, PairLogps
from tests.losses.cases import (
    LEAVES,
    OF_ANSWERS,
    columns,
    each,
    leaves,
    random_pair,
    rows,
    with_absent_column,
    with_leaves,
)

FILES = sorted((Path(hydra_conf.__file__).parent / "method").glob("*.yaml"))
# Rejected answers have no say in them.
OF_CHOSEN = {"sft", "longwriter_sft", "lm", "poft", "poft_columns", "weighted_sft", "full_ranking"}
# A hinge is flat beyond its margin; these make the margin wider than random answers are apart.
WIDE = {"hinge_dpo": {"beta": 0.01}}


def load(file: Path) -> Method:
    config = OmegaConf.load(file)
    config.loss.update(WIDE.get(file.stem, {}))
    return load_method(config)


METHODS = {file.stem: load(file) for file in FILES}


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def run(method: Method, policy: PairLogps, reference: PairLogps | None) -> LossOutput:
    return method.loss(policy, reference)


def test_the_methods_are_found() -> None:
    assert {"logo", "simpo", "dpo", "longpo", "sft"} <= METHODS.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_name_is_the_file_and_every_setting_is_explained(file: Path) -> None:
    """Each number and each need has a comment on its line: unit, meaning, where the default is from."""
    assert METHODS[file.stem].name == file.stem
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert lines[0].startswith("# ")
    structure = ("#", "name:", "loss:", "needs:", "_target_:", "_partial_:")
    for line in lines:
        key, _, rest = line.strip().partition(":")
        opens_a_mapping = not rest.strip()
        if not line.strip().startswith(structure) and not opens_a_mapping:
            assert "  # " in line, f"{file.name}: {key} has no comment"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_hyper_parameters_are_keyword_only_and_all_configured(file: Path) -> None:
    """`policy` and `reference` come by position, all else by keyword and from the YAML, so that it shows."""
    config = OmegaConf.load(file).loss
    parameters = inspect.signature(get_object(config._target_)).parameters
    names = list(parameters)
    assert names[:2] == ["policy", "reference"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names[2:])
    assert set(names[2:]) == set(config) - {"_target_", "_partial_"}


@pytest.mark.parametrize("rejected", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtype_and_gradient(method: Method, rejected: int, dtype: torch.dtype) -> None:
    policy, reference = random_pair(method.needs, prompts=3, rejected=rejected, dtype=dtype)
    output = run(method, policy, reference)
    assert output.loss.shape == (3,) and output.loss.dtype == dtype
    assert output.chosen_reward.shape == (3,) and output.rejected_reward.shape == (3, rejected)
    assert not output.chosen_reward.requires_grad and not output.rejected_reward.requires_grad
    values = [output.loss, output.chosen_reward, output.rejected_reward]
    gradients = torch.autograd.grad(
        output.loss.sum(), leaves(policy), allow_unused=True, materialize_grads=True
    )
    assert all(torch.isfinite(tensor).all() for tensor in [*values, *gradients])
    if rejected:
        own = dict(
            zip((name for name in LEAVES if getattr(policy, name) is not None), gradients, strict=False)
        )
        # The mean of language modelling and weighted sums are made by the forward, which makes them leaves here.
        others = [own[name].reshape(3, -1)[:, 0] for name in ("nll", "weighted") if name in own]
        assert (torch.stack([own["chosen"], *others]) != 0).any(dim=0).all(), (
            "the chosen answer gets no gradient"
        )


def test_sft_alone_does_without_rejected_answers(method: Method) -> None:
    assert method.uses_rejected() == (method.name not in OF_CHOSEN)


def test_gradcheck(method: Method) -> None:
    if method.needs.collision:
        pytest.skip(
            "its weights are held fixed, which differences in the loss do not know: see test_token_sums.py"
        )
    policy, reference = random_pair(method.needs, prompts=2, rejected=2)
    assert torch.autograd.gradcheck(
        lambda *tensors: run(method, with_leaves(policy, tensors), reference).loss, tuple(leaves(policy))
    )


def test_a_reference_is_read_exactly_where_it_is_declared(method: Method) -> None:
    """Declared `none`: a reference changes nothing. Declared: its absence is an error."""
    policy, reference = random_pair(method.needs)
    if reference is None:
        other = run(method, policy, random_pair(METHODS["dpo"].needs, seed=5)[1])
        torch.testing.assert_close(other.loss, run(method, policy, None).loss, rtol=0, atol=0)
    else:
        with pytest.raises(ValueError, match="reference"):
            run(method, policy, None)


def test_order_of_rejected_answers_does_not_matter(method: Method) -> None:
    policy, reference = random_pair(method.needs, rejected=3)
    order = [2, 0, 1]
    one = run(method, policy, reference)
    other = run(method, columns(policy, order), columns(reference, order))
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(one.rejected_reward[:, order], other.rejected_reward, rtol=0, atol=0)


def test_a_batch_is_its_prompts_one_by_one(method: Method) -> None:
    """Except for a loss that says otherwise: `needs.batch: step`, whose prompts may come in any order."""
    policy, reference = random_pair(method.needs, prompts=4)
    if method.needs.batch == "step":
        backwards = [2, 0, 3, 1]
        other = run(method, rows(policy, backwards), rows(reference, backwards)).loss
        torch.testing.assert_close(run(method, policy, reference).loss[backwards], other, rtol=0, atol=1e-12)
        return
    whole = run(method, policy, reference).loss
    single = [
        run(method, rows(policy, slice(i, i + 1)), rows(reference, slice(i, i + 1))).loss for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.cat(single), rtol=0, atol=1e-12)


def test_absent_answers_take_no_part(method: Method) -> None:
    """One more column of length 0 that holds NaN: same loss, same rewards, same gradients."""
    policy, reference = random_pair(method.needs)
    one = run(method, policy, reference)
    gradients = torch.autograd.grad(one.loss.sum(), leaves(policy), allow_unused=True, materialize_grads=True)
    padded = with_absent_column(policy)
    other = run(method, padded, with_absent_column(reference))
    torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=0)
    torch.testing.assert_close(one.rejected_reward, other.rejected_reward[:, :-1], rtol=0, atol=0)
    assert (other.rejected_reward[:, -1] == 0).all()
    again = torch.autograd.grad(other.loss.sum(), leaves(policy), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradients, again, rtol=0, atol=0)
    (absent,) = torch.autograd.grad(
        run(method, padded, with_absent_column(reference)).loss.sum(),
        padded.rejected,
        allow_unused=True,
        materialize_grads=True,
    )
    assert (absent[:, -1] == 0).all()


def test_prompts_of_a_batch_may_have_different_numbers_of_rejected_answers(method: Method) -> None:
    """[two, one] with the gap marked absent equals two batches of its own, also where it comes first."""
    policy, reference = random_pair(method.needs, prompts=1, rejected=1)
    alone = run(method, policy, reference).loss
    garbage = with_absent_column(policy, -1e30), with_absent_column(reference, -1e30)
    first = run(method, columns(garbage[0], [1, 0]), columns(garbage[1], [1, 0])).loss
    torch.testing.assert_close(alone, first, rtol=0, atol=0)


def test_no_rejected_answer_is_all_absent(method: Method) -> None:
    """M = 0 and M = 1 absent agree: the preference term is 0 and the graph stays."""
    policy, reference = random_pair(method.needs, rejected=0)
    none = run(method, policy, reference).loss
    absent = run(
        method,
        *(None if pair is None else with_one_absent(pair) for pair in (policy, reference)),
    ).loss
    torch.testing.assert_close(none, absent, rtol=0, atol=0)
    assert none.requires_grad


def with_one_absent(pair: PairLogps) -> PairLogps:
    """M = 0 → M = 1, absent."""
    prompts = len(pair.chosen)
    of_pairs = ("rejected", "chosen_front", "rejected_front")
    absent = torch.full((prompts, 1), -7.0, dtype=pair.chosen.dtype)
    return replace(
        pair,
        **each(pair, of_pairs, lambda _: absent.clone().requires_grad_()),
        **each(pair, OF_ANSWERS, lambda values: torch.cat([values, absent], dim=1)),
        rejected_length=torch.zeros(prompts, 1, dtype=torch.long),
        short=None if pair.short is None else with_one_absent(pair.short),
        columns={
            name: value if value.dim() == 1 else torch.cat([value, torch.zeros_like(value)], dim=1)
            for name, value in pair.columns.items()
        },
    )


@pytest.mark.parametrize("shift", [-1e5, -1e3])
def test_far_apart_answers_stay_finite(method: Method, shift: float) -> None:
    """Sums over 10,000 tokens differ by thousands of nats: no overflow, in fp32, either way round."""
    policy, reference = random_pair(method.needs, dtype=torch.float32)
    for chosen, rejected in ((shift, 0.0), (0.0, shift)):
        moved = with_leaves(
            policy,
            [leaf + (rejected if leaf.dim() == 2 else chosen) for leaf in leaves(policy)],
        )
        loss = run(method, moved, reference).loss
        gradients = torch.autograd.grad(loss.sum(), leaves(policy), allow_unused=True, materialize_grads=True)
        assert all(torch.isfinite(tensor).all() for tensor in [loss, *gradients])
