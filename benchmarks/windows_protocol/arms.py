"""The arms: what is changed of the model, what it is trained on, and how it is read; lists of overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One way to a longer window.

    Attributes:
        model: overrides of the group `model`: of the training, whose saved model keeps them, or of the reading where
            nothing trains.
        rows: what it trains on, `short`, `long`, `plain` or `knots`; None: nothing trains.
        train: further overrides of the training.
        read: further overrides of the reading.
        of: the arm whose model it reads, where nothing trains.
    """

    model: Overrides = ()
    rows: str | None = None
    train: Overrides = ()
    read: Overrides = ()
    of: str = "base"


@dataclass(frozen=True)
class Setting:
    """A model and the lengths that it is read at, all in tokens.

    Attributes:
        window: of the model as it comes.
        target: the length that the arms are made for, longer than the window.
        lengths: read at.
        edges: positions at which the ranges of perplexity begin.
        short, long: of a training row; long rows reach the target.
        budget: real tokens of training.
    """

    window: int
    target: int
    lengths: tuple[int, ...]
    edges: tuple[int, ...]
    short: int
    long: int
    budget: int

    @property
    def factor(self) -> int:
        """How many windows hold the target; a part of one counts as one."""
        return -(-self.target // self.window)


DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS: Mapping[str, Setting] = {
    "find": Setting(64, 512, (64, 128, 256, 512, 1024), (0, 64, 128, 256, 512), 64, 512, 256_000),
    "smollm2": Setting(8192, 12288, (4096, 8192, 12288), (0, 4096, 8192, 10240), 2048, 2048, 40_000),
}


def linear(factor: int) -> Overrides:
    """Position interpolation."""
    return ("model.rope.type=linear", f"model.rope.factor={factor}")


def frequencies(setting: Setting) -> dict[str, Overrides]:
    """Rotary frequencies for the target, by name.

    `dynamic` has the factor 2, with which it is CLEX before any training; `abf` has the base of the paper.
    """
    base = "model.rope.theta=500000"
    return {
        "linear": linear(setting.factor),
        "dynamic": ("model.rope.type=dynamic", "model.rope.factor=2", f"model.rope.length={setting.target}"),
        "yarn": (
            "model.rope.type=yarn",
            f"model.rope.factor={setting.factor}",
            f"model.rope.original_max_position_embeddings={setting.window}",
        ),
        "truncated": ("model/rope=truncated", f"model.rope.table.length={setting.window}"),
        "power": ("model/rope=power",),
        "abf": (base,),
        "abf_scale": (base, *query_scale(setting)),
    }


def query_scale(setting: Setting) -> Overrides:
    """The logarithm of the position over that of the window; a model of two layers has it in both."""
    skipped = 0 if setting.window == SETTINGS["find"].window else 2
    return (
        "model/query_scale=log_length",
        f"model.query_scale.window={setting.window}",
        f"model.query_scale.skip_layers={skipped}",
    )


def positions(setting: Setting) -> dict[str, Overrides]:
    """Synthesised positions up to the target, by name."""
    reach = f"positions.target_length={setting.target}"
    scales = [scale for scale in (1, 2, 4, 8) if scale <= setting.factor]
    return {
        "logo": ("positions=logo", reach),
        "random": ("positions=random", reach),
        "skip": ("positions=skip", reach),
        "e2": (
            "positions=e2",
            f"positions.factor={setting.factor}",
            f"positions.scales={scales}".replace(" ", ""),
            reach,
        ),
    }


def patterns(setting: Setting, *, near: int) -> dict[str, Overrides]:
    """Attention patterns, by name.

    Groups are a quarter of a long row. `hybrid` is full in the middle third of the layers (two layers have no middle,
    and there it is the second), and has a window of `near` tokens in the others.
    """
    sinks, group = "attention.sinks=4", f"attention.group={setting.long // 4}"
    layers = ("attention.full_layers=[1]",) if setting.window == SETTINGS["find"].window else ()
    return {
        "sink_window": ("attention=sink_window", sinks, f"attention.window={setting.window}"),
        "s2": ("attention=s2", group),
        "s2_sinks": ("attention=s2", group, sinks),
        "hybrid": (
            "attention=hybrid",
            "attention.others.sinks=4",
            f"attention.others.size={near}",
            *layers,
        ),
    }


def find_arms() -> dict[str, Arm]:
    """Setting `find`: everything, as it costs little."""
    setting = SETTINGS["find"]
    known, placed = frequencies(setting), positions(setting)
    seen = patterns(setting, near=setting.window)
    stretched = linear(setting.factor)
    twice = linear(2 * setting.factor)
    text = {rows: Arm(known["abf"], rows=rows, train=("method=lm",)) for rows in ("plain", "knots")}
    return {
        "base": Arm(),
        **{name: Arm(model) for name, model in known.items()},
        "sink_window": Arm(read=seen["sink_window"]),
        "long": Arm(rows="long"),
        **{f"{name}_long": Arm(model, rows="long") for name, model in known.items()},
        "linear_over": Arm(read=twice, of="linear_long"),
        "short": Arm(rows="short"),
        "linear_short": Arm(stretched, rows="short"),
        "logo": Arm(rows="short", train=placed["logo"]),
        "random": Arm(rows="short", train=placed["random"]),
        "skip": Arm(stretched, rows="short", train=placed["skip"]),
        "e2": Arm(stretched, rows="short", train=placed["e2"]),
        "e2_over": Arm(read=twice, of="e2"),
        "s2": Arm(stretched, rows="long", train=seen["s2"]),
        "s2_sinks": Arm(stretched, rows="long", train=seen["s2_sinks"]),
        "hybrid": Arm(stretched, rows="long", train=seen["hybrid"]),
        **text,
    }


def smollm2_arms() -> dict[str, Arm]:
    """Setting `smollm2`: what needs no training first, then what trains on rows of a quarter of the window."""
    setting = SETTINGS["smollm2"]
    known, placed = frequencies(setting), positions(setting)
    seen = patterns(setting, near=1024)
    stretched = linear(setting.factor)
    untrained = ("linear", "dynamic", "yarn", "truncated", "abf", "abf_scale")
    return {
        "base": Arm(),
        **{name: Arm(known[name]) for name in untrained},
        "sink_window": Arm(read=seen["sink_window"]),
        "hybrid_untrained": Arm(stretched, read=seen["hybrid"]),
        "short": Arm(rows="short"),
        "linear_short": Arm(stretched, rows="short"),
        "logo": Arm(rows="short", train=placed["logo"]),
        "skip": Arm(stretched, rows="short", train=placed["skip"]),
        "e2": Arm(stretched, rows="short", train=placed["e2"]),
        "s2": Arm(stretched, rows="short", train=seen["s2"]),
        "s2_sinks": Arm(stretched, rows="short", train=seen["s2_sinks"]),
        "hybrid": Arm(stretched, rows="short", train=seen["hybrid"]),
    }


ARMS: Mapping[str, Mapping[str, Arm]] = {"find": find_arms(), "smollm2": smollm2_arms()}
