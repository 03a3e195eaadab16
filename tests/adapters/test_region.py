"""CoFiTune: which modules train, how much each neuron matters, and how gradients spare those that do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import dropout
from transformers import TrainingArguments

from align.adapters.importance import RATE, divergence, importance, measure, read_texts, spare
from align.adapters.region import Region
from align.adapters.sparing import KEPT, Sparing
from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from tests.adapters.contract import examples, held_to_the_contract, loss_of
from tests.distributed import run_distributed
from tests.forked import run
from tests.longseq.plain import assert_close, gradients
from tests.rows import make_rows, words
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.training.helpers import make_trainer

NAMES = [f"model.layers.{layer}.mlp.{name}" for layer in range(2) for name in ("up_proj", "down_proj")]
UPPER = Region(layers=[0.5, 1.0])


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- the published numbers

RAW = ((0.01, -0.02, 0.005, 0.001), (0.2, 0.2, -0.1, 0.3))
IMPORTANCE = (
    (0.68256876, 0.89377546, 0.42588476, 0.15046836),
    (0.28091495, 0.28091495, 0.89437522, 0.69934911),
)


@pytest.mark.parametrize(("raw", "expected"), list(zip(RAW, IMPORTANCE, strict=True)))
def test_importance(raw, expected):
    torch.testing.assert_close(importance(of(*raw)), of(*expected), rtol=0, atol=1e-8)


def test_divergence():
    found = divergence(of(1.1, 1.8, 0.6).view(1, 1, 3), of(1, 2, 0.5).view(1, 1, 3))
    assert found.item() == pytest.approx(0.00107430, abs=5e-9)


def test_rows_of_a_gradient():
    """1 … 12 as [4, 3], row by row, and not as the flat storage has them."""
    policy: Any = UPPER.add(tiny_model(intermediate_size=4, hidden_size=64))
    weight = policy.get_base_model().model.layers[1].mlp.up_proj.ln_tuning_layers["default"].weight
    found = {name: torch.zeros(64 if "down" in name else 4) for name in NAMES}
    found["model.layers.1.mlp.up_proj"] = importance(of(*RAW[0]))
    spare(policy, found, source="FILE")
    gradient = torch.zeros(4, 64)
    gradient[:, :3] = torch.arange(1.0, 13.0).view(4, 3)
    (weight * gradient).sum().backward()
    expected = [
        *(0.31743124, 0.63486248, 0.95229372, 0.42489816, 0.53112270, 0.63734724),
        *(4.01880665, 4.59292188, 5.16703712, 8.49531642, 9.34484807, 10.19437971),
    ]
    torch.testing.assert_close(weight.grad[:, :3].flatten().double(), of(*expected), rtol=1e-6, atol=1e-7)


# ---- measuring


def texts(count: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(4, 128, (12 + 5 * i,), generator=draw) for i in range(count)]


def measured(policy: bool = True) -> dict[str, torch.Tensor]:
    model: Any = tiny_model(initializer_range=0.1).double()
    if policy:
        model = UPPER.add(model)
        model.get_base_model().set_attn_implementation(ATTENTION)
        with torch.no_grad():  # what has been trained does not count
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(1.0)
    return measure(model, texts(), NAMES)


def test_importance_by_the_weights_own_gradients():
    """A mask on an output scales a row of the weight: ∂/∂m = Σ_j W_ij ∂/∂W_ij. Both readings drop out alike."""
    model: Any = tiny_model(initializer_range=0.1).double().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = RATE
        layer.mlp.down_proj.register_forward_hook(lambda module, args, output: dropout(output, RATE))
    for number, ids in enumerate(texts()):
        torch.manual_seed(number)
        once, again = (model(input_ids=ids[None]).logits.log_softmax(-1) for _ in range(2))
        (again.exp() * (again - once)).sum().backward()
    expected = {}
    for name in NAMES:
        weight = model.get_submodule(name).weight
        raw = (weight * weight.grad).sum(1)
        expected[name] = ((raw - raw.mean()) / raw.std()).tanh().abs().float()
    for policy in (False, True):
        found = measured(policy)
        for name in NAMES:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


def test_measuring_leaves_the_model_and_the_draws_as_they_were():
    policy: Any = UPPER.add(tiny_model(initializer_range=0.1))
    policy.get_base_model().set_attn_implementation(ATTENTION)
    policy.train()
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    before = torch.get_rng_state()
    measure(policy, texts(), NAMES)
    assert torch.equal(torch.get_rng_state(), before)
    assert trained == {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert policy.get_base_model().config._attn_implementation == ATTENTION
    assert all(module.training for module in policy.modules())
    assert all(layer.self_attn.attention_dropout == 0.0 for layer in policy.get_base_model().model.layers)
    assert all(weight.grad is None for weight in policy.parameters())
    assert not any(module._forward_hooks for module in policy.modules())


def measured_on(rank: int, size: int) -> dict[str, torch.Tensor]:
    return measured()


@pytest.mark.slow
def test_several_processes_measure_the_same():
    alone = measured()
    for found in run_distributed(measured_on, 2):
        assert_close(found, alone, tolerance=1e-6)


def test_texts_are_read_up_to_a_length(tmp_path: Path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "w9 " * 600}) + "\n\n" + json.dumps({"text": "w9 w10"}) + "\n")
    assert [len(text) for text in read_texts(file, tiny_tokenizer())] == [512, 2]
    file.write_text('{"text": "w9"}\n{"prompt": "w9"}\n')
    with pytest.raises(UserError, match="line 2 is no text"):
        read_texts(file, tiny_tokenizer())
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no text"):
        read_texts(file, tiny_tokenizer())


# ---- in training


def test_the_adapter_is_exact(tmp_path: Path) -> None:
    held_to_the_contract(UPPER, tmp_path)


def importances() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {name: torch.rand(64 if "down" in name else 96, generator=draw) for name in NAMES}


def policy_of() -> Any:
    policy: Any = UPPER.add(tiny_model(initializer_range=0.1))
    policy.get_base_model().set_attn_implementation(ATTENTION)
    return policy


def scaled(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value
        * (1 - importances()[name.partition("base_model.model.")[2].partition(".ln_")[0]])[:, None]
        for name, value in values.items()
    }


def test_gradients_are_scaled_once_over_micro_batches_and_in_another_precision():
    plain, sparing = policy_of().double(), policy_of()
    spare(sparing, importances(), source="FILE")
    sparing.double()
    for rows in (examples()[:1], examples()[1:]):
        loss_of(pair_logps(sparing, pack(rows), nll_scope="chosen")).backward()
    expected = gradients(plain, loss_of(pair_logps(plain, pack(examples()), nll_scope="chosen")))
    found = {name: weight.grad for name, weight in sparing.named_parameters() if weight.requires_grad}
    assert len(found) == 2
    assert_close(found, scaled(expected), tolerance=1e-6)


def spared_run(folder: Path, source: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    policy = policy_of()
    trainer = make_trainer(folder, model=policy, **arguments)
    trainer.add_callback(Sparing(policy, source, NAMES))
    trainer.train()
    return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}


def test_clipping_sees_scaled_gradients(tmp_path: Path) -> None:
    """A step of gradient descent whose norm is clipped to 1e-3: what is clipped is the scaled gradient."""
    save_file(importances(), tmp_path / "mask.safetensors")
    start = {name: weight.detach().clone() for name, weight in policy_of().named_parameters()}
    settings = {"max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 1e-3}
    found = spared_run(tmp_path, tmp_path / "mask.safetensors", **settings)
    plain = policy_of()
    unclipped = make_trainer(tmp_path, model=plain, **settings | {"max_grad_norm": 0.0})
    unclipped.train()
    moved = scaled({name: start[name] - plain.get_parameter(name).detach() for name in found})
    norm = torch.cat([each.flatten() for each in moved.values()]).norm()
    expected = {name: each / norm * 1e-3 for name, each in moved.items()}
    assert_close({name: start[name] - found[name] for name in found}, expected, tolerance=1e-3)


def spared_on(rank: int, size: int, folder: Path) -> dict[str, torch.Tensor]:
    return spared_run(folder, folder / "mask.safetensors", per_device_train_batch_size=2)


def test_groups_spare_as_one_process_does(tmp_path: Path) -> None:
    save_file(importances(), tmp_path / "mask.safetensors")
    alone = spared_run(tmp_path, tmp_path / "mask.safetensors")
    for found in run_distributed(spared_on, 2, tmp_path):
        assert_close(found, alone, tolerance=1e-5)


def test_the_command_measures_keeps_and_goes_on(tmp_path: Path) -> None:
    """From texts, then from what that run has left, then broken off without the texts: three times the same weights."""
    import numpy as np

    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 12)
    rng = np.random.default_rng(3)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": words(rng, 20)}) + "\n" for _ in range(3)))

    def argv(name: str, mask: Path | None) -> list[str]:
        given = [] if mask is None else [f"adapter.soft_mask={mask}"]
        return [
            *("align", "train", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"),
            *("adapter=region", "adapter.layers=[0.5,1.0]", "trainer.max_steps=4", "trainer.save_steps=2"),
            *("trainer.learning_rate=0.01", f"output={tmp_path / name}", *given),
        ]

    assert run(argv("whole", texts)) == [0]
    mask = tmp_path / "whole" / KEPT
    assert load_file(mask).keys() == set(NAMES)
    assert run(argv("again", mask)) == [0]
    assert run(argv("free", None)) == [0]
    (tmp_path / "broken").mkdir()
    for name in ("config.yaml", "before.json"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "broken")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "broken" / "checkpoint-2")
    texts.write_text('{"text": "w9 w10"}\n')
    assert run(argv("broken", texts)) == [0]
    weights = {
        name: load_file(tmp_path / name / "model" / "adapter_model.safetensors")
        for name in ("whole", "again", "broken", "free")
    }
    for name in ("again", "broken"):
        assert all(torch.equal(weights[name][key], value) for key, value in weights["whole"].items())
    assert any(not torch.equal(weights["free"][key], value) for key, value in weights["whole"].items())


# ---- what is refused


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"soft_mask": "mask.npy"}, "has an unknown ending"),
        ({"soft_mask": "a.jsonl", "modules": ["q_proj"]}, "and q_proj trains too"),
        ({"soft_mask": "a.jsonl", "modules_to_save": ["norm"]}, "and norm trains too"),
    ],
)
def test_wrong_keys_are_refused(keys, said):
    with pytest.raises(UserError, match=said):
        Region(**keys).check()


def test_split_weights_and_missing_files_are_refused(tmp_path: Path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    (tmp_path / "texts.jsonl").write_text('{"text": "w9"}\n')
    region = Region(soft_mask=str(tmp_path / "texts.jsonl"))
    for wrapper in ("fsdp2", "zero3", "zero3_offload"):
        with pytest.raises(UserError, match=f"which {wrapper} splits over processes"):
            region.check_launch(wrapper, arguments)
        Region().check_launch(wrapper, arguments)
    for wrapper in ("none", "ddp", "zero1", "zero2"):
        region.check_launch(wrapper, arguments)
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        Region(soft_mask="none.jsonl").check_launch("ddp", arguments)


def test_importances_of_another_model_are_refused():
    with pytest.raises(UserError, match=r"has no 96 numbers for model\.layers\.1\.mlp\.up_proj"):
        spare(policy_of(), {}, source="FILE")
    other = {name: torch.zeros(7) for name in NAMES}
    with pytest.raises(UserError, match=r"has no 96 numbers for model\.layers\.1\.mlp\.up_proj"):
        spare(policy_of(), other, source="FILE")
