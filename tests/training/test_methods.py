"""`load_method`: what it accepts, what it refuses and how it says so, and a method from outside."""

from __future__ import annotations

import math
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import hydra_conf
from align.core.errors import UserError
from align.core.instantiate import allowed, instantiate
from align.training.method_settings import NO_NEEDS, read_needs
from align.training.methods import load_method, made_up_logps

METHODS = Path(hydra_conf.__file__).parent / "method"
NEEDS = {"reference": "none", "policy_short": False, "nll_scope": "none"}
SIMPO = {"_target_": "losses.simpo_loss", "_partial_": True, "beta": 2.0, "gamma": 1.0}


def config(**changes: Any) -> dict[str, Any]:
    return {"name": "simpo", "loss": dict(SIMPO), "needs": dict(NEEDS)} | changes


def test_plain_mapping_and_dictconfig_are_the_same() -> None:
    """A loaded method is the loss with its settings, ready to call."""
    for source in (config(), OmegaConf.create(config())):
        method = load_method(source)
        assert method.name == "simpo" and method.needs.reference == "none"
        assert method.loss.keywords == {"beta": 2.0, "gamma": 1.0}


def test_nested_losses_and_interpolations() -> None:
    """SoLoPO's preference and reward are functions, and the reward's β is the preference's."""
    loaded = OmegaConf.load(METHODS / "solopo.yaml")
    loaded.loss.preference.beta = 2.5
    method = load_method(loaded)
    assert method.loss.keywords["reward"].keywords == {"beta": 2.5}


MIXTURE = {
    "_target_": "losses.mixture_loss",
    "_partial_": True,
    "losses": {"simpo": SIMPO, "sft": {"_target_": "losses.sft_loss", "_partial_": True}},
    "weights": {"simpo": 1.0, "sft": 0.5},
}


def test_a_mixture_is_made_of_losses_of_the_configuration() -> None:
    """Made-up answers of −2 and −3 nats a token: SimPO's margin 2·1 − 1 = 1, SFT's 2: log(1 + 1/e) + ½·2."""
    policy, _ = made_up_logps(read_needs(NO_NEEDS))
    method = load_method(config(loss=MIXTURE))
    assert method.loss(policy, None).loss.item() == pytest.approx(math.log1p(math.exp(-1)) + 1)
    assert method.uses_rejected()


def test_a_mixture_keeps_what_its_losses_remember() -> None:
    """BCO's shift learns from BCO's rewards, whatever the first loss has: log-ratios 3 and 1, δ = 0.1·(3 + 1)/2."""
    loaded = OmegaConf.load(METHODS / "mpo.yaml")
    loaded.loss.losses.dpo.beta, loaded.loss.losses.bco.beta = 9.0, 0.1
    method = load_method(loaded)
    ((name, (loss, state)),) = method.learners().items()
    assert name == "losses.bco.shift" and method.states() == {name: state}
    policy, _ = made_up_logps(method.needs)
    reference = replace(policy, chosen=policy.chosen - 3, rejected=policy.rejected - 1)
    state.observe(policy, loss(policy, reference))
    assert state.value.item() == pytest.approx(0.1 * (3 + 1) / 2)


def test_a_divergence_is_chosen_by_its_name() -> None:
    loaded = OmegaConf.load(METHODS / "f_dpo.yaml")
    OmegaConf.update(loaded, "loss.divergence", {"_target_": "losses.divergences.alpha", "alpha": 0.3})
    assert load_method(loaded).loss.keywords["divergence"].keywords == {"alpha": 0.3}
    del loaded.loss.divergence.alpha
    with pytest.raises(UserError, match="alpha"):
        load_method(loaded)


REFUSED = [
    (
        config(loss=MIXTURE | {"losses": {"simpo": SIMPO, "sft": {"_target_": "os.system"}}}),
        r"method\.loss\.losses\.sft\._target_=os\.system is refused",
    ),
    (
        config(loss=MIXTURE | {"losses": {"simpo": SIMPO | {"betta": 1}}}),
        r"method\.loss\.losses\.simpo\.betta is unknown",
    ),
    (config(loss=MIXTURE | {"weights": {"simpo": 1.0}}), "every loss needs a weight of its name"),
    (config(loss=MIXTURE | {"weights": {"simpo": 1.0, "sft": "half"}}), r"weights\.sft must be a number"),
    (
        config(loss={"_target_": "os.system", "_partial_": True}),
        r"method\.loss\._target_=os\.system is refused",
    ),
    (config(loss={"_target_": "losses_x.f"}), r"_target_=losses_x\.f is refused"),
    (
        config(loss=SIMPO | {"gamma": {"_target_": "builtins.eval"}}),
        r"method\.loss\.gamma\._target_=builtins",
    ),
    (config(loss=SIMPO | {"gamma": [{"_target_": "os.getcwd"}]}), r"method\.loss\.gamma\[0\]\._target_=os"),
    (config(loss={"_target_": "losses.simpo.F.logsigmoid"}), "is no function or class of losses"),
    (config(loss={"_target_": "losses.logo"}), "is no function or class of losses"),
    (
        config(loss={"_target_": "losses.nothing"}),
        r"losses\.nothing cannot be loaded: .*no attribute 'nothing'",
    ),
    (config(loss={"beta": 1.0}), "method.loss needs a `_target_`"),
    (
        config(loss=SIMPO | {"betta": 2.0}),
        r"method\.loss\.betta is unknown \(did you mean beta\?\); losses\.simpo_loss",
    ),
    (config(loss={"_target_": "losses.simpo_loss", "_partial_": True, "beta": 2.0}), "'gamma'"),
    (config(loss=SIMPO | {"beta": "ten"}), r"method\.loss\.beta=ten has to be a number"),
    (config(loss=SIMPO | {"beta": None}), r"method\.loss\.beta=null has to be a number"),
    (config(loss=SIMPO | {"beta": True}), r"method\.loss\.beta=True has to be a number"),
    (
        config(loss={"_target_": "losses.PairLogps", "_partial_": True}),
        "its loss and its settings do not fit",
    ),
    (config(loss=SIMPO | {"beta": "${nowhere}"}), "nowhere"),
    (config(loss={"_target_": "losses.LossOutput", "_partial_": True}), "LossOutput"),
    (config(loss=SIMPO | {"_partial_": False}), "missing 2 required|missing 1 required"),
    (config(needs=NEEDS | {"reference": "long"}), r"method\.needs\.reference=long .* none, same, short"),
    (config(needs=NEEDS | {"policy_short": "yes"}), r"method\.needs\.policy_short=yes .* false, true"),
    (config(needs=NEEDS | {"policy_short": 1}), r"method\.needs\.policy_short=1 "),
    (config(needs=NEEDS | {"nll_scope": None}), r"method\.needs\.nll_scope=None"),
    (config(needs=NEEDS | {"nll": "none"}), r"method\.needs\.nll is unknown"),
    (config(needs={"reference": "none"}), r"method\.needs\.policy_short is missing"),
    (config(needs="none"), "method.needs has to be a mapping"),
    ({"name": "simpo", "loss": SIMPO}, r"method\.needs is missing"),
    (config(extra=1), r"method\.extra is unknown"),
    (config(loss={"_target_": "losses.dpo_loss", "_partial_": True, "beta": 0.1}), "reference log-probs"),
    (config(loss=SIMPO | {"_target_": "losses.dpo.dpo_loss"}), r"gamma is unknown; losses\.dpo\.dpo_loss"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_bad_settings_end_in_one_sentence(bad: dict[str, Any], message: str) -> None:
    """Before any model loads; the message names the key."""
    with pytest.raises(UserError, match=message) as caught:
        load_method(bad)
    assert "\n" not in str(caught.value)


def test_a_wide_margin_still_uses_rejected_answers() -> None:
    """β = 1000: the margin is 1000 nats and the gradient rounds to 0, but the loss compares all the same."""
    assert load_method(config(loss=SIMPO | {"beta": 1000.0})).uses_rejected()


def test_a_name_allows_itself_and_what_is_inside() -> None:
    assert allowed("losses", ["losses"]) and allowed("losses.dpo.f", ["losses"])
    assert not allowed("lossesx.f", ["losses"]) and not allowed("my.losses.f", ["losses"])


def test_nothing_is_imported_before_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused package does not run, not even as a second target beside an allowed one."""
    (tmp_path / "harmful.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="refused"):
        instantiate(SIMPO | {"gamma": {"_target_": "harmful.f"}}, allow=["losses"])
    assert "harmful" not in sys.modules


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A method outside the repository: a package with one loss, and a configuration folder with one YAML."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "loss.py").write_text(
        textwrap.dedent(
            """
            import torch

            from losses import LossOutput, PairLogps
            from losses.rewards import mean_logp_reward


            def hinge_loss(policy: PairLogps, reference: PairLogps | None = None, *, margin: float) -> LossOutput:
                chosen, rejected = mean_logp_reward(policy, beta=1.0)
                loss = torch.relu(margin - chosen[:, None] + rejected).mean(dim=1)
                return LossOutput(loss, chosen.detach(), rejected.detach())
            """
        )
    )
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "hinge.yaml").write_text(
        textwrap.dedent(
            """
            name: hinge
            loss:
              _target_: my_package.loss.hinge_loss
              _partial_: true
              margin: 3.0
            needs:
              reference: none
              policy_short: false
              nll_scope: none
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "conf"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_a_method_outside_the_repository(my_package: Path) -> None:
    """`--config-dir conf method=hinge 'allow_targets=[my_package]'`, overrides included.

    Made-up log-probs are not needed: means −2 and −3 and a margin of 4 give relu(4 + 2 − 3) = 3.
    """
    from losses import PairLogps

    with initialize_config_dir(str(my_package), version_base="1.3"):
        composed = compose(overrides=["+method=hinge", "method.loss.margin=4.0"])
    method = load_method(composed.method, allow_targets=["my_package"])
    policy = PairLogps(torch.tensor([-2.0]), torch.tensor([[-3.0]]), torch.tensor([1]), torch.tensor([[1]]))
    assert method.loss(policy, None).loss.tolist() == [3.0]


def test_a_method_outside_the_repository_needs_permission(my_package: Path) -> None:
    composed = OmegaConf.load(my_package / "method" / "hinge.yaml")
    with pytest.raises(UserError, match=r"my_package\.loss\.hinge_loss is refused; .*allow_targets"):
        load_method(composed)
    assert "my_package" not in sys.modules


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = config(loss={"_target_": "no_such_package.f", "_partial_": True})
    with pytest.raises(UserError, match="no package no_such_package can be imported"):
        load_method(bad, allow_targets=["no_such_package"])
