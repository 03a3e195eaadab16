"""`model.kernels=liger` on a CPU: a stand-in with liger-kernel's signatures and semantics takes the package's place.

tests/models/test_liger.py runs liger-kernel's own, in Triton's interpreter or on a GPU, where they are installed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from transformers.models.llama import modeling_llama

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import ATTENTION
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import start_parallel
from align.models import kernels
from align.models.checks import check_model
from align.models.kernels import FAMILIES, check_kernels, fuse, kernels_on
from align.models.loading import load_causal_lm, load_config
from align.models.settings import ModelSettings
from align.models.structure import find_causal_lm
from align.reference.settings import ReferenceSettings, reference_model
from align.training import run
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, randomise_lora_b, relative_error
from tests.longseq.sharded import Case, case_errors
from tests.models.fused import assert_counts, family_config, family_model, loss_of, step
from tests.models.liger_standin import CALLS, install
from tests.tiny import save_tiny

ROUNDING = 1e-5  # of fp32, relative to a gradient's norm


@pytest.fixture(autouse=True)
def _liger(monkeypatch):
    install(monkeypatch)
    kernels._say.cache_clear()


def assert_same_step(actual: nn.Module, expected: nn.Module) -> None:
    (loss, found), (plain_loss, plain) = step(actual), step(expected)
    assert loss.item() == pytest.approx(plain_loss.item(), rel=ROUNDING)
    assert_close(found, plain, tolerance=ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_the_same_step_by_the_kernels(family):
    check_kernels(ModelSettings(kernels="liger"), family_config(family))
    plain, fused = family_model(family), family_model(family)
    parameters = dict(fused.named_parameters())
    counts = fuse(fused)
    assert_counts(family, counts, layers=2)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert all(parameter is parameters[name] for name, parameter in fused.named_parameters())
    assert_same_step(fused, plain)
    assert (
        CALLS.keys() == counts.keys()
    )  # not of every layer: SmolLM3 and EXAONE-4 have layers without positions


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_round_where_the_family_rounds(family):
    """In bfloat16, to the last bit: before the weight or after it, and a weight that is a difference from 1."""
    plain = family_model(family).to(torch.bfloat16)
    fused = family_model(family).to(torch.bfloat16)
    fuse(fused)
    new = {name: m for name, m in fused.named_modules() if type(m).__name__ == "LigerRMSNorm"}
    olds = dict(plain.named_modules())
    assert new
    for name, norm in new.items():
        states = torch.randn(3, 7, norm.weight.shape[0], generator=torch.Generator().manual_seed(0))
        states = states.to(torch.bfloat16)
        assert torch.equal(norm(states), olds[name](states)), name


@pytest.mark.parametrize(
    "levers", [{}, {"mlp_chunk": 7}, {"mode": "keep_attention"}, {"offload": "host"}], ids=str
)
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3"])
def test_checkpointed_tiled_and_offloaded(family, levers):
    """What the backward pass recomputes goes through the kernels again, which write over their inputs."""
    plain, fused = family_model(family), family_model(family)
    fuse(fused)
    apply_checkpointing(fused, **{"mode": "full", **levers})
    assert_same_step(fused, plain)


def test_adapters_on_every_projection_and_trained_norms():
    settings = Lora(r=4, target_modules=["all-linear"], modules_to_save=["norm"])
    models = []
    for change in (lambda model: None, fuse):
        model = family_model("qwen3")
        change(model)
        torch.manual_seed(0)
        adapted = add_adapter(model, settings).train()
        randomise_lora_b(adapted)
        models.append(adapted)
    plain, fused = models
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert_same_step(fused, plain)
    trained = [name for name, parameter in fused.named_parameters() if parameter.requires_grad]
    assert any("gate_proj.lora_B" in name for name in trained)
    assert any("layernorm.modules_to_save" in name for name in trained)


@dataclass(frozen=True)
class FusedCase(Case):
    """A sharded step by the kernels, against padded rows without them."""

    def build(self, attention: str) -> nn.Module:
        model = super().build(attention)
        if attention == ATTENTION:
            fuse(find_causal_lm(model))
        return model


CASES = {
    "heads 9/3, tiled": FusedCase(heads=(9, 3), checkpointing="full", mlp_chunk=9),
    "LoRA, attention kept": FusedCase(model={"kind": "qwen3"}, lora=True, checkpointing="keep_attention"),
    "one projection of queries, keys and values": FusedCase(model={"kind": "phi3"}),
}


def table_worker(rank: int, size: int) -> dict[tuple[str, str], dict[str, float]]:
    install(pytest.MonkeyPatch())  # this process ends with it
    return {
        (kind, name): case_errors(case, start_parallel(kind, size))
        for kind in ("ulysses", "gather")
        for name, case in CASES.items()
    }


def test_rows_shared_by_two_processes():
    """What an exchange hands back is written over by the rotary embedding's backward pass."""
    for case, errors in run_distributed(table_worker, 2)[0].items():
        assert max(errors.values()) <= ROUNDING, case


class _Unpacked(nn.Module):
    """A projection whose weights are made anew at each call, as those of four bits are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = linear.weight.detach().t().contiguous()

    def forward(self, states):
        return states @ self.packed


def test_projections_of_another_class_are_called_as_modules():
    plain, fused = family_model("llama"), family_model("llama")
    for model in (plain, fused):
        for layer in model.model.layers:
            for name in ("gate_proj", "up_proj", "down_proj"):
                setattr(layer.mlp, name, _Unpacked(getattr(layer.mlp, name)))
    fuse(fused)
    assert isinstance(fused.model.layers[0].mlp.gate_proj, _Unpacked)
    assert_same_step(fused, plain)


def test_an_image_encoder_keeps_its_own_modules():
    model = family_model("qwen2_5_vl_text")
    before = [type(module) for module in model.model.visual.modules()]
    fuse(model)
    assert [type(module) for module in model.model.visual.modules()] == before
    assert any(kind.__name__.endswith("RMSNorm") for kind in before)


def test_the_library_stays_as_it_is():
    """Another model of the same classes, made afterwards, computes as ever."""
    own, rotary = modeling_llama.LlamaAttention.forward, modeling_llama.apply_rotary_pos_emb
    fused = family_model("llama")
    fuse(fused)
    loss_of(fused)
    assert isinstance(fused.model.layers[0].self_attn, modeling_llama.LlamaAttention)
    assert modeling_llama.LlamaAttention.forward is own and modeling_llama.apply_rotary_pos_emb is rotary
    CALLS.clear()
    loss_of(family_model("llama"))
    assert not CALLS


def test_what_is_saved_is_the_plain_model(tmp_path):
    fused = family_model("llama")
    fuse(fused)
    fused.save_pretrained(tmp_path)
    again = load_causal_lm(ModelSettings(path=str(tmp_path), dtype="float32"))
    assert type(again.model.norm).__name__ == "LlamaRMSNorm"
    assert fused.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fused.state_dict().items())


# ---- settings


def compose_train(*words: str) -> DictConfig:
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        return hydra.compose("train", [*words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama")
    save_tiny(made, "llama")
    return made


@pytest.fixture
def chosen(folder) -> ModelSettings:
    return ModelSettings(path=str(folder), kernels="liger")


def test_policy_and_reference_are_loaded_with_the_kernels(chosen, monkeypatch, capsys):
    monkeypatch.setattr("align.models.loading.kernels_on", lambda settings, device: settings.kernels)
    for settings in (chosen, reference_model(ReferenceSettings(), chosen)):
        model = load_causal_lm(settings)
        assert type(model.model.norm).__name__ == "LigerRMSNorm"
        assert type(model.model.layers[0].mlp).__name__ == "LigerSwiGLUMLP"
    said = "model.kernels=liger: LlamaForCausalLM computes by 5 LigerRMSNorm, 2 LigerRopeFunction, 2 LigerSwiGLUMLP."
    assert capsys.readouterr().err.splitlines() == [said]


def test_on_a_cpu_they_are_off_which_is_said_once(chosen, monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None
    )  # nothing has to be installed for that
    for _ in range(2):
        model = load_causal_lm(chosen, device="cpu")
        assert type(model.model.norm).__name__ == "LlamaRMSNorm"
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        "model.kernels=liger is off: its kernels need a CUDA GPU, and this model computes on cpu."
    )


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [("cuda:1", True, "liger"), (None, True, "liger"), (None, False, "none"), ("cpu", True, "none")],
)
def test_where_a_model_computes_decides(device, gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert kernels_on(ModelSettings(kernels="liger"), device) == expected
    assert kernels_on(ModelSettings(), device) == "none"


def test_what_is_unknown_missing_or_unproven_is_refused(chosen, monkeypatch):
    config = load_config(chosen)
    with pytest.raises(UserError, match=r"model\.kernels=fast"):
        check_model(replace(chosen, kernels="fast"))
    with pytest.raises(
        UserError, match=r"proven for exaone4, .*qwen3_vl_text.*, and not for gpt2: set model\.kernels=none"
    ):
        check_kernels(chosen, family_config("gpt2"))
    gelu = family_config("llama")
    gelu.hidden_act = "gelu"
    with pytest.raises(UserError, match="silu or swish in llama, and not gelu"):
        check_kernels(chosen, gelu)
    first, second = family_config("gemma"), family_config("gemma2")
    first.hidden_act, first.hidden_activation = "gelu", "gelu_pytorch_tanh"  # its class reads the former
    second.hidden_act = "gelu"  # and this one's the other
    check_kernels(chosen, second)
    with pytest.raises(UserError, match="gelu_pytorch_tanh in gemma, and not gelu"):
        check_kernels(chosen, first)
    remote = family_config("llama")
    remote.auto_map = {"AutoModelForCausalLM": "code.Model"}
    check_kernels(chosen, remote)
    with pytest.raises(UserError, match="not a model's code"):
        check_kernels(replace(chosen, trust_remote_code=True), remote)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'long-preference\[liger\]'"):
        check_kernels(chosen, config)
    check_kernels(replace(chosen, kernels="none"), config)


def test_a_run_on_a_cpu_goes_on_without_them_and_one_on_a_gpu_is_checked(
    folder, tmp_path, monkeypatch, capsys
):
    words = [f"model.path={folder}", "model.kernels=liger", f"output={tmp_path}", "method=dpo"]
    config = compose_train(*words)
    assert run.check(config).model.kernels == "none"
    assert "model.kernels=liger is off" in capsys.readouterr().err
    monkeypatch.setattr(run, "kernels_on", lambda settings, device: settings.kernels)
    assert run.check(config).model.kernels == "liger"
    save_tiny(tmp_path / "other", "gpt_neox")
    other = compose_train(*words, f"reference.model={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"not for gpt_neox: set model\.kernels=none for reference\.model="):
        run.check(other)


def test_weights_that_zero3_has_scattered_are_taken_over():
    """There a parameter is empty until its module is called."""
    norm = SimpleNamespace(weight=nn.Parameter(torch.empty(0)), variance_epsilon=1e-5, training=True)
    new = kernels._fused_norm(norm, kernels.Norm())
    assert new.weight is norm.weight and new.training
    assert relative_error(torch.tensor(new.form[0]), torch.tensor(1e-5)) == 0
