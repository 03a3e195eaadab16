"""The factors themselves: the papers' formulas, golden values, what is refused, and how a checkpoint keeps one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch

from align.core.errors import UserError
from align.longseq.attention import attend, attend_plain, prepare
from align.longseq.shared_prefix import Layout, PackedPrompt
from align.models.loading import load_config
from align.models.reach import reach_of
from align.models.scaled_attention import scaled_query
from align.models.settings import ModelSettings, RopeSettings
from align.query_scale.constant import Constant
from align.query_scale.llama4 import Llama4
from align.query_scale.log_length import LogLength
from align.query_scale.scale import built, plain, with_window
from tests.tiny import save_tiny

GOLDEN = {4095: 1.0, 4096: 1.00002935, 8191: 1.08333333, 16383: 1.16666667, 32767: 1.25}


def factors(scale, positions, layer=2):
    return scale.scale(torch.tensor([positions], dtype=torch.float64), layer)[0].tolist()


def test_the_logarithm_of_the_paper():
    """max(1, ln i / ln 4096), i counted from 1."""
    found = factors(LogLength(window=4096), list(GOLDEN))
    assert found == pytest.approx(list(GOLDEN.values()), abs=5e-9)
    assert factors(LogLength(window=4), range(8)) == pytest.approx(
        [1, 1, 1, 1, 1.16096405, 1.29248125, 1.40367746, 1.5], abs=5e-9
    )


def test_the_first_layers_are_left_alone():
    positions = torch.zeros(1, 3)
    assert LogLength(window=4).scale(positions, 1) is None
    assert LogLength(window=4, skip_layers=0).scale(positions, 0) is not None
    assert Constant(2.0, skip_layers=1).scale(positions, 0) is None


def test_llama4_grows_by_steps():
    """0.1 · ln 4 above 1 at position 16,383, the last of the fourth window."""
    assert factors(Llama4(window=4096), [0, 4095, 4096, 16383]) == pytest.approx(
        [1, 1, 1 + 0.1 * math.log(2), 1.13862944], abs=5e-9
    )


def sequences(tokens, width):
    """Queries sin n, keys cos n, values sin 2n, n the element's number from 1."""
    n = torch.arange(1, tokens * width + 1, dtype=torch.float64).view(1, 1, tokens, width)
    return n.sin(), n.cos(), (2 * n).sin()


class Layer(torch.nn.Module):
    """An attention layer of a model with a query scale."""

    def __init__(self, scale, layer=2):
        super().__init__()
        self.layer_idx = layer
        self.config = type("Config", (), {"query_scale": plain(scale)})


@pytest.mark.parametrize(
    "way", [attend_plain, lambda *qkv, layout: attend(*qkv, layout=layout, kernel="cpu")]
)
def test_attention_with_scaled_queries(way):
    """Eight tokens with a window of four: the eighth, scaled by 1.5, and the fourth, which is left as it was."""
    query, key, value = sequences(8, 2)
    layout = prepare(Layout((PackedPrompt((0, 8), ()),)))
    unscaled = way(query, key, value, layout=layout)[0, 0]
    scaled = scaled_query(Layer(LogLength(window=4)), query, torch.arange(8)[None])
    found = way(scaled, key, value, layout=layout)[0, 0]
    golden = {7: [0.29329112, -0.08680500], 3: [0.16754051, -0.38950417]}
    for token, expected in golden.items():
        assert found[token].tolist() == pytest.approx(expected, abs=1e-8)
    assert unscaled[7].tolist() == pytest.approx([0.19894367, -0.05203463], abs=1e-8)
    weights = [(q[0, 0, 7] @ key[0, 0].T / 2**0.5).softmax(0) for q in (scaled, query)]
    entropy = [-(w * w.log()).sum().item() for w in weights]
    assert entropy == pytest.approx([1.99036583, 2.03933645], abs=1e-8)


def test_bfloat16_is_rounded_once():
    """Within half of bfloat16's last place, 2⁻⁸; the factor 13/12 is not rounded to 1.0859 before, as released."""
    query = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = scaled_query(Layer(LogLength(window=4096)), query, torch.full((1, 3), 8191))
    assert found.dtype == torch.bfloat16
    released = query * torch.tensor(13 / 12).bfloat16()
    errors = [(one.double() / query.double() / (13 / 12) - 1).abs().max() for one in (found, released)]
    assert errors[0] <= 2**-8 * (1 + 1e-6) < errors[1]


def test_a_layer_without_positions_is_refused():
    with pytest.raises(UserError, match="no positions"):
        scaled_query(Layer(Constant(2.0)), torch.zeros(1, 1, 2, 4), None)
    with pytest.raises(UserError, match="no number of the layer"):
        scaled_query(Layer(Constant(2.0), layer=None), torch.zeros(1, 1, 2, 4), torch.zeros(1, 2))


REFUSED = {
    "model.query_scale.window=1 is too small": LogLength(window=1),
    "skip_layers=-1": LogLength(skip_layers=-1),
    "model.query_scale.beta=0 has to be above 0": Llama4(beta=0.0),
    "value=inf": Constant(math.inf),
}


@pytest.mark.parametrize("message", REFUSED)
def test_values_out_of_range(message):
    with pytest.raises(UserError, match=message):
        REFUSED[message].check()


@pytest.mark.parametrize("scale", [LogLength(window=8), Llama4(window=8), Constant(1.5)])
def test_a_checkpoint_keeps_it(scale):
    stored = json.loads(json.dumps(plain(scale)))
    assert built(stored) == scale


@dataclass(frozen=True)
class Own:
    """A scale of a package of the user's."""

    window: int | None = None

    def check(self):
        assert self.window != 0

    def scale(self, positions, layer):
        return positions + 1

    def words(self):
        return "p + 1"


def test_a_class_of_the_users_is_named_by_the_user_alone():
    """What a checkpoint names is not imported; what `model.query_scale` has named is found again."""
    stored = {"_target_": f"{__name__}.Own", "window": 5}
    with pytest.raises(UserError, match="allow_targets"):
        built(stored)
    own = Own(window=5)
    assert plain(own) == stored
    assert built(stored) is own
    with pytest.raises(UserError, match="of config"):
        built({"_target_": "align.query_scale.constant.Constant", "value": "x"})


# ---- in a model's configuration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, max_position_embeddings=64)
    return folder


def configured(path, scale, **rope):
    return load_config(
        ModelSettings(path=str(path), query_scale=scale, rope=RopeSettings(**rope))
    ).query_scale


def test_null_is_the_checkpoints_window(checkpoint):
    """That of the checkpoint, whatever `model.rope` makes of it; later, that of the scale that it comes with."""
    assert configured(checkpoint, LogLength())["window"] == 64
    assert configured(checkpoint, LogLength(), theta=5e5, max_position_embeddings=256)["window"] == 64
    assert configured(checkpoint, LogLength(window=16))["window"] == 16
    with pytest.raises(UserError, match="give its tokens"):
        with_window(LogLength(), None)


def test_a_later_round_keeps_the_first_ones_window(checkpoint, tmp_path):
    settings = ModelSettings(path=str(checkpoint), query_scale=LogLength(window=16))
    load_config(settings).save_pretrained(tmp_path)
    assert configured(tmp_path, None)["window"] == 16
    assert configured(tmp_path, LogLength(skip_layers=1)) == plain(LogLength(window=16, skip_layers=1))
    assert configured(tmp_path, Llama4())["window"] == 64


def test_no_scale_leaves_the_configuration_alone(checkpoint):
    assert "query_scale" not in load_config(ModelSettings(path=str(checkpoint))).to_dict()


def test_whether_a_factor_changes_with_the_position(checkpoint):
    found = {
        name: reach_of(ModelSettings(path=str(checkpoint), query_scale=scale)).scaled
        for name, scale in {"none": None, "log": LogLength(skip_layers=1), "constant": Constant(2.0)}.items()
    }
    assert found == {"none": False, "log": True, "constant": False}


NATIVE = {
    "llama_4_scaling_beta": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
    },
    "attn_temperature_tuning": {"attn_temperature_tuning": True},
}


@pytest.mark.parametrize("key", NATIVE)
def test_models_that_scale_by_themselves_are_refused(key, tmp_path):
    save_tiny(tmp_path, **NATIVE[key])
    with pytest.raises(UserError, match=f"themselves .*{key}"):
        configured(tmp_path, Constant(2.0))
