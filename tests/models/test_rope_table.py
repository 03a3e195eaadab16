"""`model.rope.type=table`: stored as `longrope` with equal lists, read again as it was, one embedding a position."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from align.adapters.reading import read_model
from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.support import check_config
from align.models.identity import Identity
from align.models.loading import auto_class, load_causal_lm, load_config, native_window
from align.models.precision import Precision
from align.models.reading import typed_model
from align.models.rope import override_rope, switches_by_length
from align.models.settings import ModelSettings, RopeSettings
from align.models.small import few_layers
from align.planning.architecture import measure, read_config
from align.rope_tables.clex import Clex
from align.rope_tables.giraffe import Giraffe
from align.rope_tables.lists import Factors, Frequencies
from align.rope_tables.ntk import Ntk
from align.rope_tables.table import RopeContext
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps
from tests.tiny import tiny_composite, tiny_model

THETA, WINDOW = 10_000.0, 4096
# Giraffe's truncated basis of 16 dimensions: 2π/2048/16 in the seventh place, then nothing.
TRUNCATED = [1, 0.31622777, 0.1, 0.03162278, 0.01, 0.00316228, 1.91747598e-4, 0]


@dataclass(frozen=True)
class Mine:
    """A table of one's own: every frequency divided by the window in thousands of tokens."""

    shift: int = 0

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        if self.shift < 0:
            raise ValueError("went below")
        return plain[self.shift :] / (context.window / 1024)


def compose(*overrides: str, command: str = "train"):
    with initialize_config_module(config_module="hydra_conf", version_base="1.3"):
        return hydra_compose(command, overrides=list(overrides))


def with_table(table, **keys) -> RopeSettings:
    return RopeSettings(type="table", table=table, **keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    return path


def settings(folder: Path, rope: RopeSettings) -> ModelSettings:
    return ModelSettings(path=str(folder), dtype="float32", rope=rope)


# ---- what is stored


def test_a_table_is_longrope_with_equal_lists(folder):
    """Factors 1 … 1, θ_6/ρ = 1e-3/1.917e-4, and 1e38 for the frequency of 0; no scale of cos and sin anywhere."""
    config = load_config(settings(folder, with_table(Giraffe(length=2048), max_position_embeddings=65536)))
    rope = config.rope_parameters
    assert rope["rope_type"] == "longrope" and rope["rope_theta"] == THETA
    assert rope["short_factor"] == rope["long_factor"]
    np.testing.assert_allclose(rope["long_factor"], [1.0] * 6 + [5.21518917, 1e38], rtol=1e-8)
    assert (rope["factor"], rope["attention_factor"]) == (1.0, 1.0)
    assert rope["original_max_position_embeddings"] == config.max_position_embeddings == 65536
    check_config(config)


def test_it_goes_through_json_and_another_process_alike(folder, tmp_path):
    """config.json, AutoConfig and a model that knows nothing of tables: the same frequencies, to the last bit."""
    model = load_causal_lm(settings(folder, with_table(Giraffe(length=2048))))
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    assert stored == AutoConfig.from_pretrained(tmp_path).rope_parameters == model.config.rope_parameters
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert again.model.rotary_emb.attention_scaling == 1.0
    check_config(load_config(ModelSettings(path=str(tmp_path))))


def test_frequencies_stay_as_they_are_however_long_a_row(folder):
    rotary = load_causal_lm(settings(folder, with_table(Giraffe(length=2048)))).model.rotary_emb
    np.testing.assert_allclose(rotary.inv_freq.numpy(), TRUNCATED, rtol=1e-6)
    before = rotary.inv_freq.clone()
    rotary.config.rope_parameters["original_max_position_embeddings"] = 1024  # would be switched at
    short = rotary(torch.zeros(1), torch.arange(9)[None])
    rotary(torch.zeros(1), torch.arange(3000)[None])
    assert torch.equal(rotary.inv_freq, before)
    again = rotary(torch.zeros(1), torch.arange(9)[None])
    assert all(torch.equal(one, two) for one, two in zip(short, again, strict=True))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_every_family_gets_the_tables_frequencies(kind, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path)
    model = load_causal_lm(settings(tmp_path, with_table(Ntk(factor=4.0), theta=5e5)))
    expected = (5e5 * 4 ** (16 / 14)) ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), expected, rtol=1e-6)
    assert getattr(model.config, "original_max_position_embeddings", WINDOW) == WINDOW


def test_a_part_of_the_head_is_rotated_by_a_table_of_its_own_length(tmp_path):
    """GLM rotates 8 of 16 dimensions: four frequencies, and NTK's exponent has d = 8."""
    tiny_model("glm").save_pretrained(tmp_path)
    rotary = load_causal_lm(settings(tmp_path, with_table(Ntk(factor=4.0)))).model.rotary_emb
    expected = (THETA * 4 ** (8 / 6)) ** (-np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(rotary.inv_freq.numpy(), expected, rtol=1e-6)
    with pytest.raises(
        UserError, match=r"has 8 numbers, and this model's heads rotate 8 dimensions, which need 4"
    ):
        load_config(settings(tmp_path, with_table(Frequencies(values=TRUNCATED))))


@pytest.mark.parametrize("rope", [{"type": "yarn", "factor": 4.0}, {"type": "table", "table": Ntk()}])
def test_a_model_that_leaves_the_width_of_its_heads_open(rope):
    """Mixtral's `head_dim` is null, which the library's functions for YaRN and LongRoPE cannot read."""
    config = few_layers(AutoConfig.for_model("mixtral", hidden_size=32, num_attention_heads=4), vocabulary=16)
    assert config.head_dim is None
    override_rope(config, RopeSettings(**rope))
    assert AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq.shape == (4,)


@pytest.mark.parametrize("rope", [{"type": "yarn", "factor": 4.0}, {"type": "table", "table": Ntk()}])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "glm4v"])
def test_sections_of_images_positions_outlive_a_change_of_type(kind, rope):
    """Which pairs of a head turn by which of an image's positions belongs to the architecture."""
    config = tiny_composite(kind).config
    sections = config.get_text_config().rope_parameters["mrope_section"]
    override_rope(config, RopeSettings(**rope))
    assert config.get_text_config().rope_parameters["mrope_section"] == sections
    model = auto_class(config).from_config(config)
    assert model(input_ids=torch.arange(5)[None]).logits.isfinite().all()


def test_one_of_two_unlike_lists_by_its_file(tmp_path):
    """A Phi-3 whose row's length picks a list trains on its long one, with the scale that the library derives."""
    config = tiny_model("phi3", max_position_embeddings=512).config
    config.original_max_position_embeddings = 16
    factors = {"short_factor": [1.0] * 8, "long_factor": [1 + i / 4 for i in range(8)]}
    config.rope_parameters |= {"rope_type": "longrope", "original_max_position_embeddings": 16} | factors
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    scale = math.sqrt(1 + math.log(512 / 16) / math.log(16))
    rope = with_table(Factors(path=str(tmp_path / "config.json")), attention_factor=scale)
    ours = load_causal_lm(settings(tmp_path, rope))
    check_config(ours.config)
    long = torch.arange(20)[None]
    for one, two in zip(
        model.model.rotary_emb(torch.zeros(1), long),
        ours.model.rotary_emb(torch.zeros(1), long),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_a_scale_of_cos_and_sin(folder):
    rope = with_table(Factors(values=[1.0, 1, 1, 1, 2, 2, 4, 4]), attention_factor=1.1)
    model = load_causal_lm(settings(folder, rope))
    assert model.model.rotary_emb.attention_scaling == 1.1


# ---- relations between types


@pytest.mark.parametrize(("t", "theta"), [(2, None), (4, 133905.18279407)])
def test_clex_before_training_is_dynamic_with_factor_two(t, theta, tmp_path):
    """d = 8: `model.rope.type=dynamic factor=2 length=t·window` has the frequencies of a CLEX network of zeros."""
    weights = {"ode_up_proj": torch.ones(4, 8), "ode_down_proj": torch.zeros(8, 4)}
    save_file(weights, tmp_path / "clex.safetensors")
    dynamic = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    table = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    override_rope(dynamic, RopeSettings(type="dynamic", factor=2.0, length=64 * t))
    override_rope(table, with_table(Clex(path=str(tmp_path / "clex.safetensors"), t=float(t))))
    base = dynamic.rope_parameters["rope_theta"]
    if theta is not None:
        assert base == pytest.approx(theta, rel=1e-12)
    plain = THETA ** (-np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(
        plain / table.rope_parameters["long_factor"], base ** (-np.arange(0, 8, 2) / 8), atol=2e-10, rtol=0
    )


def test_theta_says_what_ntk_says(folder):
    ntk = load_causal_lm(settings(folder, with_table(Ntk(factor=4.0)))).model.rotary_emb
    theta = load_causal_lm(settings(folder, RopeSettings(theta=THETA * 4 ** (16 / 14)))).model.rotary_emb
    torch.testing.assert_close(ntk.inv_freq, theta.inv_freq, rtol=1e-6, atol=0)


def test_a_clex_checkpoint_is_its_own_table(folder, tmp_path):
    """Llama's weights with CLEX's network beside them, as its released models have it: read as a plain Llama."""
    weights = load_file(folder / "model.safetensors")
    weights["model.clex_layer.proj_func.ode_up_proj"] = torch.ones(8, 16)
    weights["model.clex_layer.proj_func.ode_down_proj"] = torch.full((16, 8), 0.01)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "clex", "rope_theta": THETA, "max_factor": 16, "act": "tanh"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_causal_lm(settings(tmp_path, with_table(Clex(path=str(tmp_path), t=4.0))))
    # The network pushes z by tanh(Σ z_NTK · 1) · 16 · 0.01 a unit of t, here −0.16: the sum stays far below 0.
    expected = (THETA * 7 ** (16 / 14)) ** (-np.arange(0, 16, 2) / 16) * np.exp(-0.16 * 3)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), expected, rtol=1e-5)


# ---- exact, and known


def test_packed_rows_of_a_table_are_plain_rows():
    """Loss and gradients in fp64, with positions on both sides of the window that unlike lists would switch at."""
    rng = np.random.default_rng(0)
    examples = [make_example(rng, prompt=30, answers=[7, 4, 5]), make_example(rng, prompt=5, answers=[3, 6])]
    config = tiny_model(max_position_embeddings=16).config
    override_rope(config, with_table(Giraffe(length=2048)))
    models = [
        tiny_model(max_position_embeddings=16, rope_parameters=config.rope_parameters) for _ in range(2)
    ]
    plain, shared = (model.double().train() for model in models)
    shared.set_attn_implementation(ATTENTION)
    expected, found = plain_pair_logps(plain, examples), pair_logps(shared, pack(examples))
    torch.testing.assert_close(found.chosen, expected.chosen)
    torch.testing.assert_close(found.rejected, expected.rejected)
    sums = [(each.chosen.sum() - each.rejected.sum()) for each in (expected, found)]
    assert_close(gradients(plain, sums[0]), gradients(shared, sums[1]), tolerance=1e-6)


EQUAL = {
    "rope_type": "longrope",
    "rope_theta": THETA,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 2, 2, 2, 2, 2, 2, 2],
    "long_factor": [1, 2.0, 2, 2, 2, 2, 2, 2],
}


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_longrope_checkpoints_with_equal_lists_are_read(kind, tmp_path):
    """No key of the reference needs the row's length; an attention factor that the checkpoint states stays."""
    unlike = EQUAL | {"long_factor": [1.0] * 8}
    for name, rope, switches in (("equal", EQUAL, False), ("unlike", unlike, True)):
        config = tiny_model(kind).config
        config.rope_parameters = rope | {"attention_factor": 1.3, "partial_rotary_factor": 1.0}
        if kind == "phi3":
            config.original_max_position_embeddings = 16
        assert switches_by_length(config) is switches
        model = AutoModelForCausalLM.from_config(config)
        assert model.model.rotary_emb.attention_scaling == 1.3
        model.save_pretrained(tmp_path / name)
        read = ModelSettings(path=str(tmp_path / name))
        identity = Identity.of(read, precision=Precision(), cache=tmp_path / "cache")
        assert identity.row_length_matters is switches
        if switches:
            with pytest.raises(
                UserError, match="has LongRoPE, which picks its frequencies by the row's longest"
            ):
                check_config(load_config(read))
        else:
            check_config(load_config(read))


def test_what_stretches_a_model_is_known_as_such(folder, tmp_path):
    """No window cuts rows, the identity differs, `align plan` counts the same, a small copy has shorter lists."""
    rope = with_table(Giraffe(length=2048))
    plain, table = settings(folder, RopeSettings()), settings(folder, rope)
    assert native_window(plain) == WINDOW and native_window(table) is None
    digests = {Identity.of(each, precision=Precision(), cache=tmp_path).digest for each in (plain, table)}
    assert len(digests) == 2
    config, _ = read_config(table)
    assert measure(config, table).parameters == measure(read_config(plain)[0], plain).parameters
    assert few_layers(config, vocabulary=8).rope_parameters["rope_type"] == "longrope"


# ---- configuration


CHOICES = {
    "truncated": ([], Giraffe(length=2048)),
    "power": (["model.rope.table.scale=4"], Giraffe(power=0.5, scale=4)),
    "ntk": (["model.rope.table.factor=8"], Ntk(factor=8)),
    "frequencies": (["model.rope.table.values=[1,0.5]"], Frequencies(values=[1, 0.5])),
    "factors": (["model.rope.table.values=[1,2]"], Factors(values=[1, 2])),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_on_the_command_line(name):
    keys, table = CHOICES[name]
    assert typed_model(compose(f"model/rope={name}", *keys, command="inspect")).rope == with_table(table)


@pytest.mark.parametrize("command", ["train", "evaluate", "synthesize", "verify", "plan"])
def test_every_command_takes_it(command):
    assert typed_model(compose("model/rope=ntk", command=command)).rope == with_table(Ntk())


def test_a_clex_choice_names_its_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"model\.rope\.table\.path is not set"):
        read_model(compose("model/rope=clex"))
    save_file({"ode_up_proj": torch.ones(1)}, tmp_path / "x.safetensors")
    model = read_model(compose("model/rope=clex", f"model.rope.table.path={tmp_path}"))
    assert model.rope == with_table(Clex(path=str(tmp_path)))


def test_without_a_choice_nothing_is_there():
    assert read_model(compose()).rope == RopeSettings()
    assert read_model(compose("model=llama3_8b", "model/rope=ntk")).rope == with_table(Ntk())


def test_a_table_of_ones_own(folder):
    """In a package that `allow_targets` names; it is told of the window, and what it raises is one sentence."""
    own = "model.rope.table={_target_: tests.models.test_rope_table.Mine, shift: 0}"
    config = compose("model.rope.type=table", own, "allow_targets=[tests]")
    model = replace(read_model(config), path=str(folder), dtype="float32")
    found = load_causal_lm(model).model.rotary_emb.inv_freq
    np.testing.assert_allclose(found, THETA ** (-np.arange(0, 16, 2) / 16) / 4, rtol=1e-6)
    with pytest.raises(
        UserError, match=r"model\.rope\.table\._target_=tests\..* is refused; targets come from align"
    ):
        read_model(compose("model.rope.type=table", own))
    with pytest.raises(UserError, match=r"frequencies of shape \[7\].*16 dimensions, which need \[8\]"):
        load_config(settings(folder, with_table(Mine(shift=1))))
    with pytest.raises(UserError, match=r"model\.rope\.table: went below"):
        load_config(settings(folder, with_table(Mine(shift=-1))))


REFUSED = [
    (["model.rope.table={_target_: os.system}"], r"type=null does not read it: set model\.rope\.type=table"),
    (["model.rope.type=yarn", "model.rope.table={_target_: a}"], r"type=yarn does not read it"),
    (["model.rope.type=table", "model.rope.table={_target_: os.system}"], r"_target_=os\.system is refused"),
    (
        ["model.rope.type=table", "model.rope.table={_target_: align.data.weighers.Rank}"],
        r"Rank is refused: take align\.rope_tables\.clex\.Clex",
    ),
    (["model.rope.type=table", "model.rope.table=2048"], r"model\.rope\.table needs a `_target_`"),
    (["model/rope=truncated", "model.rope.table.length=-1"], r"length=-1 is no number of tokens"),
    (["model/rope=truncated", "model.rope.table.length=long"], r"length=long has the wrong type"),
    (
        ["model/rope=truncated", "+model.rope.table.lengths=1"],
        r"table\.lengths is unknown.*did you mean length",
    ),
    (["model/rope=factors", "model.rope.table.values=[1,-2]"], r"number 2 of its list is -2"),
    (["model/rope=frequencies", "model.rope.table.path=no.json"], r"no\.json is no file that can be read"),
]


@pytest.mark.parametrize(("keys", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refused_before_a_model_is_read(keys, sentence):
    with pytest.raises(UserError, match=sentence):
        typed_model(compose(*keys, command="inspect"))


@pytest.mark.parametrize(
    ("rope", "sentence"),
    [
        ({"type": "table"}, r"type=table needs model\.rope\.table"),
        ({"type": "table", "table": Ntk(), "factor": 2.0}, r"factor does not go with RoPE of type table"),
        ({"table": Ntk()}, r"table does not go with RoPE of type default: set model\.rope\.type to table"),
        ({"type": "table", "table": Frequencies(values=[1.0] * 3)}, r"has 3 numbers.*need 8"),
    ],
)
def test_refused_by_the_models_own_configuration(folder, rope, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(settings(folder, RopeSettings(**rope)))
