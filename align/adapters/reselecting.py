"""SpIEL-AG between the steps of training: dense gradients collected in windows, weights chosen anew at their ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.shira.layer import Linear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.adapters.dense import watch_weight
from align.adapters.reselection import Window, aged_step, closes, exchanged, in_window, moments_of, share_at
from align.core.errors import UserError

STATE = "spiel.safetensors"
_ADAPTER = "default"  # as PEFT names the one adapter of a model
_MEAN, _SQUARE = "exp_avg", "exp_avg_sq"  # as torch's AdamW names its moments


class SparseLayer:
    """A layer of which single weights train, and what is known of them.

    Attributes:
        layer: PEFT's, with the places `[2, k]` and the values `[k]`.
        ages: `[k]` updates of each weight so far.
        window: what is collected; None while no window is open.
    """

    def __init__(self, layer: Linear) -> None:
        self.layer = layer
        self.ages = torch.zeros(len(self.values), dtype=torch.int32, device=self.values.device)
        self.window: Window | None = None
        self._collecting = False
        self._gradient: Tensor | None = None
        watch_weight(layer, self._take, when=lambda: self._collecting)

    @property
    def values(self) -> nn.Parameter:
        """δ, which trains."""
        values: nn.Parameter = self.layer.shira_weight[_ADAPTER]
        return values

    @property
    def places(self) -> Tensor:
        """`[k]` in the flattened weight."""
        rows, columns = self.layer.shira_indices[_ADAPTER].to(self.values.device).long()
        return rows * self.layer.in_features + columns

    def begin_step(self, *, collecting: bool) -> None:
        """Before a step's first forward."""
        self._collecting, self._gradient = collecting, None

    def end_step(self) -> None:
        """Takes the step's gradient into the window: its mean over processes, as a wrapper takes that of what trains.

        Only the first step of a window needs the whole of it; of the others the candidates' is enough.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is None:  # no token came by on this process
            shape = (
                (self.layer.out_features, self.layer.in_features) if self.window is None else self.ages.shape
            )
            gradient = self.values.new_zeros(shape)
        gradient = _mean_over_processes(gradient)
        if self.window is None:
            self.window = Window.opened(gradient, len(self.ages))
        else:
            self.window.add(gradient)

    @torch.no_grad()
    def choose(self, state: Mapping[str, Any], *, count: int, steps: int, betas: tuple[float, float]) -> None:
        """Exchanges `count` weights at the end of a window of so many steps; new ones start at 0.

        Args:
            state: of the optimizer, for the values; moments in it belong to places, and are set in place.
            count: how many make room, at most.
            steps: of the window, which is the age of new weights.
            betas: of AdamW.
        """
        window, self.window = self.window, None
        if window is None:
            return
        places = self.places
        free, taking = exchanged(places, self.values, window, count=count)
        places[free] = window.candidates[taking]
        columns = self.layer.in_features
        self.layer.shira_indices[_ADAPTER] = torch.stack([places // columns, places % columns]).int()
        self.values[free] = 0.0
        self.ages[free] = steps
        if _MEAN in state:
            state[_MEAN][free], state[_SQUARE][free] = moments_of(window, taking, steps=steps, betas=betas)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What a checkpoint keeps, by name; places and values are in the adapter, moments in the optimizer."""
        yield "ages", self.ages
        if self.window is not None:
            yield from vars(self.window).items()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave."""
        here = {name: tensor.to(self.values.device) for name, tensor in tensors.items()}
        self.ages = here.pop("ages")
        self.window = Window(**here) if here else None

    def to_device(self) -> None:
        """Follows the model."""
        self.restore(dict(self.tensors()))

    def _take(self, gradient: Tensor) -> None:
        part = gradient.to(self.values.dtype)
        if self.window is not None:
            part = part.flatten()[self.window.candidates]
        self._gradient = part if self._gradient is None else self._gradient + part


class Reselection(TrainerCallback):
    """Makes SpIEL-AG of a policy whose single weights train (PEFT's SHiRA).

    A step's gradient is the unit that is collected: its sum over micro-batches, data-parallel processes and the shards
    of a row, so that any number of each chooses the same weights. The published code collects micro-batches of one
    process, which is the same where a step is one micro-batch. As there, gradients are taken before they are clipped.
    In the first step of a window the whole gradient of every layer is there, 4 bytes a weight, as in full training.

    AdamW's moments stay torch's. Its step is made again from them with an age for each weight, since torch counts steps
    once for all: a weight that is a few steps old would move at a fraction of its rate. Plain gradient descent (`sgd`)
    has no moments and is left as it is.

    Args:
        policy: inside PEFT.
        every, collect, rate, schedule: as in hydra_conf/adapter/spiel.yaml.
    """

    def __init__(self, policy: nn.Module, *, every: int, collect: int, rate: float, schedule: str) -> None:
        self.every, self.collect, self.rate, self.schedule = every, collect, rate, schedule
        self.layers = {
            name: SparseLayer(module) for name, module in policy.named_modules() if isinstance(module, Linear)
        }
        self.steps = 0  # in the open window
        self._before: dict[str, Tensor] = {}

    # ---- in training

    def on_train_begin(self, args: TrainingArguments, *unused: Any, **kwargs: Any) -> None:
        """The model is where it trains now."""
        for layer in self.layers.values():
            layer.to_device()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens a window where one is due."""
        for layer in self.layers.values():
            layer.begin_step(collecting=self._collects(state.global_step + 1))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers the values, from which the step is made again."""
        if _has_moments(kwargs["optimizer"]):
            self._before = {name: layer.values.detach().clone() for name, layer in self.layers.items()}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes the step with each weight's age; collects, and chooses anew at the end of a window."""
        update, optimizer = state.global_step + 1, kwargs["optimizer"]
        for layer in self.layers.values():
            layer.ages += 1
        self._step_again(optimizer)
        if self._collects(update):
            self.steps += 1
            for layer in self.layers.values():
                layer.end_step()
        if closes(update, every=self.every, collect=self.collect):
            share = share_at(
                update,
                total=state.max_steps,
                collect=self.collect,
                rate=self.rate,
                schedule=self.schedule,
            )
            self._choose(optimizer, share)

    def _collects(self, update: int) -> bool:
        return in_window(update, every=self.every, collect=self.collect)

    @torch.no_grad()
    def _step_again(self, optimizer: Any) -> None:
        groups = {id(each): group for group in optimizer.param_groups for each in group["params"]}
        for name, before in self._before.items():
            layer = self.layers[name]
            group, moments = groups[id(layer.values)], optimizer.state[layer.values]
            layer.values.copy_(
                aged_step(
                    before,
                    (moments[_MEAN], moments[_SQUARE]),
                    layer.ages,
                    learning_rate=float(group["lr"]),
                    betas=group["betas"],
                    epsilon=group["eps"],
                    decay=group["weight_decay"],
                )
            )
        self._before = {}

    def _choose(self, optimizer: Any, share: float) -> None:
        betas = optimizer.param_groups[0].get("betas", (0.0, 0.0))
        for layer in self.layers.values():
            state = optimizer.state.get(layer.values, {})
            layer.choose(state, count=int(len(layer.ages) * share), steps=self.steps, betas=betas)
        self.steps = 0

    # ---- in checkpoints

    def save(self, folder: Path, *, writes: bool) -> None:
        """See `Kept`."""
        if not writes:
            return
        tensors = {
            f"{name}/{what}": tensor.detach().cpu().contiguous()
            for name, layer in self.layers.items()
            for what, tensor in layer.tensors()
        }
        save_file({**tensors, "steps": torch.tensor(self.steps)}, folder / STATE)

    def load(self, folder: Path) -> None:
        """See `Kept`."""
        if not (folder / STATE).is_file():
            raise UserError(
                f"{folder} holds no {STATE}, without which adapter=spiel cannot go on from it: name another checkpoint."
            )
        tensors = load_file(folder / STATE)
        self.steps = int(tensors.pop("steps"))
        by_layer: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, what = name.rpartition("/")
            by_layer.setdefault(layer, {})[what] = tensor
        for name, kept in by_layer.items():
            self.layers[name].restore(kept)


def _has_moments(optimizer: Any) -> bool:
    return "betas" in optimizer.param_groups[0]


def _mean_over_processes(values: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    total = values.contiguous()
    dist.all_reduce(total)
    return total / dist.get_world_size()
