"""Group `model.moe`: what is refused and said before weights load, which routers train, how experts are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align.adapters.adapter import adapter_with_routers, add_adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.probe import check_architecture
from align.models.checks import check_model
from align.models.loading import load_causal_lm
from align.models.routers import PROBABILITIES, freeze_routers, routers_of
from align.models.settings import ModelSettings, MoeSettings
from align.reference.settings import ReferenceSettings, reference_model
from tests.longseq.balanced import MIXTURES
from tests.longseq.plain import assert_close, gradients
from tests.longseq.sharded import Case, loss_of
from tests.tiny import save_tiny, tiny_model
from tests.training.helpers import Rows

SMALL = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for kind, settings in {"qwen3_moe": SMALL, "llama": {}, "phimoe": {"num_local_experts": 4}}.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        save_tiny(made[kind], kind, **settings)
    return made


def settings_of(folder: Path, lora: Lora | None = None, **moe: Any) -> ModelSettings:
    return ModelSettings(path=str(folder), adapter=lora, moe=MoeSettings(**moe))


@pytest.mark.parametrize(
    ("moe", "sentence"),
    [
        ({"balance": -0.1}, "model.moe.balance=-0.1 is no coefficient: give a number from 0"),
        ({"router": "frozen"}, "model.moe.router=frozen is not known: use auto, train, freeze"),
        (
            {"experts": "grouped_mm"},
            "model.moe.experts=grouped_mm is not known: use auto, eager, grouped, batched",
        ),
    ],
)
def test_words_and_numbers_that_are_not_known(moe, sentence):
    with pytest.raises(UserError, match=sentence):
        check_model(ModelSettings(moe=MoeSettings(**moe)))


@pytest.mark.parametrize("moe", [{"balance": 0.1}, {"router": "freeze"}, {"experts": "eager"}])
def test_a_model_without_experts_takes_none_of_the_keys(folders, moe):
    with pytest.raises(UserError, match=r"model\.moe is for mixtures of experts, and model\.path=.* is none"):
        check_architecture(settings_of(folders["llama"], **moe))


def test_a_router_that_weighs_otherwise_is_refused(folders):
    """Phi-MoE draws its experts at random in training."""
    with pytest.raises(UserError, match="PhimoeTopKRouter weighs experts by neither softmax nor sigmoid"):
        check_architecture(settings_of(folders["phimoe"], balance=0.1))


def test_what_becomes_of_the_experts_is_said(folders, capfd):
    check_architecture(settings_of(folders["qwen3_moe"], balance=0.01, router="freeze"))
    said = capfd.readouterr().err
    assert (
        "is a mixture of 4 experts: 0.01 times its load-balancing loss is added to each step's loss." in said
    )
    assert "model.moe.router=freeze: the layers that choose the experts are frozen." in said
    with pytest.warns(UserWarning, match=r"set model.moe.balance for that \(its configuration names 0.001\)"):
        check_architecture(settings_of(folders["qwen3_moe"]))


def trained(model: nn.Module) -> dict[str, bool]:
    """Whether routers and experts train."""
    routers = [weight for router in routers_of(model).values() for weight in router.parameters()]
    experts = [weight for name, weight in model.named_parameters() if "experts" in name]
    return {
        "routers": any(weight.requires_grad for weight in routers),
        "experts": any(weight.requires_grad for weight in experts),
    }


@pytest.mark.parametrize(
    ("r", "router", "routers", "experts"),
    [
        (0, "auto", True, True),
        (0, "freeze", False, True),
        (4, "auto", False, False),
        (4, "freeze", False, False),
        (4, "train", True, False),
    ],
)
@pytest.mark.parametrize("kind", ["qwen2_moe", "granitemoe"])
def test_which_routers_train(kind, r, router, routers, experts):
    sizes = MIXTURES.get(kind, {"num_local_experts": 4, "num_experts_per_tok": 2})
    model = tiny_model(kind, **sizes)
    settings = settings_of(Path(), Lora(r=r) if r else None, router=router)
    policy = add_adapter(model, adapter_with_routers(model, settings))
    freeze_routers(policy, settings)
    assert trained(policy) == {"routers": routers, "experts": experts}
    shared = [weight for name, weight in policy.named_parameters() if "shared_expert_gate" in name]
    assert all(weight.requires_grad == (r == 0) for weight in shared)


def test_a_router_beside_lora_has_its_gradient():
    model = tiny_model("qwen3_moe", **SMALL)
    model.set_attn_implementation(ATTENTION)
    settings = settings_of(Path(), Lora(r=4), router="train")
    policy = add_adapter(model, adapter_with_routers(model, settings))
    pair_logps(policy, pack(Rows(2).examples)).chosen.sum().backward()
    found = [w for name, w in policy.named_parameters() if "gate.modules_to_save" in name]
    assert len(found) == 2
    assert all(weight.grad is not None and weight.grad.any() for weight in found)


def test_all_linear_leaves_routers_alone():
    """Hunyuan's router is a linear layer within its gate."""
    model = tiny_model("hunyuan_v1_moe", num_experts=4, moe_topk=2, moe_intermediate_size=24)
    policy = add_adapter(model, Lora(r=4, target_modules=["all-linear"]))
    adapted = {name for name, _ in policy.named_parameters() if "lora_A" in name}
    assert any("q_proj" in name for name in adapted)
    assert not any(".gate.wg." in name for name in adapted)


@pytest.mark.parametrize("kernel", ["grouped", "batched"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "glm4_moe"])
def test_the_experts_kernel_changes_nothing(tmp_path, kind, kernel):
    """Loss and every gradient as with one expert after the other, in fp32."""
    save_tiny(tmp_path, kind, initializer_range=0.2, **MIXTURES[kind])
    found = {}
    for name in ("eager", kernel):
        model = load_causal_lm(settings_of(tmp_path, experts=name), attention=ATTENTION)
        expected = {"eager": "eager", "grouped": "grouped_mm", "batched": "batched_mm"}[name]
        assert model.config._experts_implementation == expected
        loss = loss_of(pair_logps(model, Case().batch()))
        found[name] = loss.item(), gradients(model, loss)
    assert found[kernel][0] == pytest.approx(found["eager"][0], rel=1e-5)
    assert_close(found[kernel][1], found["eager"][1], tolerance=1e-5)


def test_the_reference_computes_experts_alike_and_trains_nothing(tmp_path):
    policy = settings_of(tmp_path, balance=0.1, router="train", experts="eager")
    assert reference_model(ReferenceSettings(), policy).moe == MoeSettings(experts="eager")
    other = reference_model(ReferenceSettings(source="frozen", model="other"), policy)
    assert other.moe == MoeSettings()


def test_probabilities_are_probabilities():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for form in PROBABILITIES.values():
        assert torch.allclose(form(logits).sum(-1), torch.ones(5))
