"""`model.attention=auto`: what is taken, what is passed over and why; a candidate that is wrong is never taken."""

from __future__ import annotations

import pytest
import torch

from align.longseq import choice as module
from align.longseq.choice import Asked, best_kernel, choose, problem_on, torchs_kernel
from align.longseq.flash import load_flash
from align.longseq.kernels import CpuKernel, register_kernel
from tests.longseq.flash_packages import MODULES

BF16 = Asked(torch.bfloat16, (128, 128), 4)


def right(name, asked):
    """A trial that finds nothing wrong."""


@pytest.mark.parametrize(
    ("capability", "installed", "taken"),
    [
        ((8, 0), ("flash2", "flash3", "flash4"), "flash2"),
        ((8, 9), (), "cuda_flash"),
        ((9, 0), ("flash2", "flash3", "flash4"), "flash3"),
        ((9, 0), ("flash2", "flash4"), "flash4"),
        ((9, 0), ("flash2",), "flash2"),
        ((10, 0), ("flash2", "flash3", "flash4"), "flash4"),
        ((10, 3), ("flash3",), "cuda_flash"),
        ((12, 0), ("flash3", "flash4"), "cuda_flash"),
        ((12, 0), ("flash2", "flash4"), "flash2"),
        ((7, 5), ("flash2", "flash4"), None),
    ],
)
def test_the_best_package_of_a_card(capability, installed, taken):
    chosen = choose(BF16, capability, right, there=installed.__contains__)
    assert chosen.kernel == taken


@pytest.mark.parametrize(
    ("asked", "capability", "taken"),
    [
        (Asked(torch.float32, (64, 64), 1), (9, 0), "cuda_efficient"),
        (Asked(torch.float64, (64, 64), 1), (9, 0), None),
        (Asked(torch.bfloat16, (512, 512), 8), (9, 0), "cuda_efficient"),
        (Asked(torch.bfloat16, (192, 128), 1), (10, 0), "flash4"),
        (Asked(torch.bfloat16, (160, 160), 1), (10, 0), "cuda_flash"),
        (Asked(torch.bfloat16, (128, 128), 2, 50.0), (10, 0), "flash4 softcap 50.0"),
        (Asked(torch.float32, (128, 128), 2, 50.0), (10, 0), "capped softcap 50.0"),
    ],
)
def test_what_a_layer_asks_for(asked, capability, taken):
    assert choose(asked, capability, right, there={"flash4"}.__contains__).kernel == taken


def test_what_is_wrong_or_fails_on_this_card_is_passed_over_with_the_reason():
    found = {"flash3": "RuntimeError: no kernel image is available", "flash4": "it is wrong here"}
    chosen = choose(BF16, (9, 0), lambda name, asked: found.get(name), there=lambda name: True)
    assert chosen.kernel == "flash2" and chosen.passed == tuple(found.items())
    narrow = Asked(torch.bfloat16, (264, 264), 1)
    chosen = choose(narrow, (9, 0), right, there={"flash2"}.__contains__)
    assert chosen.kernel == "cuda_efficient" and "up to 256 wide" in dict(chosen.passed)["flash2"]


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize(
    ("name", "widths"), [("flash2", (64, 64)), ("flash3", (24, 24)), ("flash4", (24, 16))]
)
def test_a_trial_finds_nothing_wrong_with_a_right_kernel(name, widths, softcap):
    kernel = name if softcap is None else f"{name} softcap {softcap}"
    register_kernel(kernel, load_flash(kernel, module=MODULES[name]()))
    assert problem_on(torch.device("cpu"), kernel, Asked(torch.float32, widths, 3, softcap)) is None
    assert problem_on(torch.device("cpu"), "cpu", Asked(torch.bfloat16, widths, 3)) is None


class OffInOneGradient(CpuKernel):
    """As a kernel may be that a compiler got wrong."""

    def backward(self, *arguments):
        query, key, value = super().backward(*arguments)
        return query, key * 1.1, value


class Unbuilt(CpuKernel):
    def forward(self, *arguments):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")


class OutOfMemory(CpuKernel):
    def forward(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_trial_finds_a_wrong_gradient_and_a_kernel_for_another_card():
    device, asked = torch.device("cpu"), Asked(torch.float32, (64, 64), 2)
    register_kernel("off", OffInOneGradient())
    assert "it is wrong here (off by 0.1" in problem_on(device, "off", asked)
    register_kernel("unbuilt", Unbuilt())
    assert problem_on(device, "unbuilt", asked) == (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    )
    assert "needs the extra `flash`" in problem_on(device, "flash2 softcap 3.0", asked)
    register_kernel("full", OutOfMemory())
    with pytest.raises(torch.OutOfMemoryError):  # says nothing of the kernel
        problem_on(device, "full", asked)


def test_on_a_cpu_there_is_nothing_to_try(monkeypatch):
    monkeypatch.setattr(module, "choose", None)
    query, value = torch.empty(1, 4, 3, 16), torch.empty(1, 2, 3, 8)
    assert best_kernel(query, value, None) == torchs_kernel(query, value, None) == "cpu"
    assert best_kernel(query, value, 3.0) == "capped softcap 3.0"


def test_the_first_layer_of_a_kind_chooses_and_it_is_said_once(monkeypatch, capsys):
    """A stand-in for a GPU with one package that is built for another one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "installed", {"flash2", "flash3"}.__contains__)
    monkeypatch.setattr(
        module, "problem_on", lambda device, name, asked: "no image" if name == "flash3" else None
    )
    module._chosen.cache_clear()
    for _ in range(3):
        assert module._chosen(BF16, torch.device("cuda")) == "flash2"
    module._chosen.cache_clear()
    assert " ".join(capsys.readouterr().err.split()) == (
        "model.attention=auto: flash2 for heads 128 wide, 4 to a KV head, bfloat16; flash3 is passed over: no image."
    )
