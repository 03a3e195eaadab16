"""One class of the table of architectures: a small model of it, both ways to compute a step, and what it is made of."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from align.core.errors import UserError, first_line
from align.longseq import numeric
from align.longseq.attention import ATTENTION
from align.longseq.fake_run import check_structure
from align.longseq.float64 import Float64
from align.longseq.forward import pair_logps
from align.longseq.parallel import start_parallel
from align.longseq.probe import prove
from align.longseq.shared_prefix import pack
from align.longseq.small_model import build_small
from align.longseq.support import check_config, keeps_state
from align.longseq.verdicts import EXACT, UNPROVEN, Verdict
from align.models.loading import library_class
from align.models.settings import LIBRARY, MASKED
from align.models.small import small
from align.models.structure import experts, find_causal_lm
from align.models.text_part import is_composite, set_attention, text_config
from benchmarks.architecture_defaults import DEFAULTS

MEMORY = 6 << 30  # bytes of address space
SECONDS = 60
VERDICTS = {"exact": "shared", "differs": "refused", "refused": "refused", "unproven": "unproven"}


@dataclass(frozen=True)
class Architecture:
    """A class that generates text, and the configuration that it is built from."""

    config_class: type[PreTrainedConfig]

    @property
    def name(self) -> str:
        """Key of the results: the configuration's type."""
        return str(self.config_class.model_type)

    def config(self) -> PreTrainedConfig:
        """The class's own defaults, filled up, that of a text part inside it too."""
        config = self.config_class(**DEFAULTS.get(self.config_class.model_type, {}))
        for name in config.sub_configs:
            part = getattr(config, name, None)
            if isinstance(part, PreTrainedConfig) and part.model_type in DEFAULTS:
                setattr(config, name, type(part)(**DEFAULTS[part.model_type]))
        if "is_decoder" in config.to_dict():
            config.is_decoder = True
        return config


def architectures() -> Iterator[Architecture]:
    """Every class of the installed transformers for a causal language model, alone or behind images."""
    for config_class in dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING]):
        yield Architecture(config_class)


def examine(architecture: Architecture) -> dict[str, Any]:
    """The row of one class: verdict, errors, marks, sequence parallelism."""
    row: dict[str, Any] = {"verdict": "not built"}
    try:
        config = architecture.config()
        model_class: Any = library_class(config)
        if model_class is None:
            return row | {
                "verdict": "refused",
                "sentence": "transformers has no causal language model of this type",
            }
        row["class"] = model_class.__name__
        model = build_small(model_class, config)
    except Exception as error:  # a class that no rule makes small: the row says why
        said = " ".join(str(error).split())
        if isinstance(error, UserError):
            return row | {"verdict": "refused", "sentence": said}
        return row | {"sentence": f"{type(error).__name__}: {said}"[:300]}
    row |= {"decoder": is_decoder(config), "marks": marks(config, model)}
    verdict = verdict_of(model_class, config, "sdpa")
    row |= {name: value for name, value in asdict(verdict).items() if name not in ("kind", "notices")}
    row["verdict"] = VERDICTS[verdict.kind]
    if verdict.kind == EXACT:
        return row | {"parallel": parallel_error(model_class, config)}
    for verdict, attention in (("by a mask", MASKED), ("own rows", LIBRARY)):
        other = verdict_of(model_class, config, attention)
        if other.kind == EXACT:
            return row | {
                "verdict": verdict,
                "loss": other.loss,
                "gradient": other.gradient,
                "dtype": other.dtype,
            }
        row[verdict] = other.sentence
    return row


def verdict_of(model_class: type[PreTrainedModel], config: PreTrainedConfig, attention: str) -> Verdict:
    """What a start of training with `model.attention` would say of the class."""
    try:
        check_config(small(config), attention=attention)
    except UserError as error:
        return Verdict("refused", str(error))
    verdict = prove(model_class, config, attention=attention)
    if verdict.kind == UNPROVEN:
        try:
            check_structure(model_class, config, attention)
        except UserError as error:
            return Verdict("refused", str(error))
    return verdict


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether the class is a decoder by birth, and not an encoder's or an encoder-decoder's second use."""
    values = config.to_dict()
    return not values.get("is_encoder_decoder") and "is_decoder" not in values


def marks(config: PreTrainedConfig, model: torch.nn.Module) -> list[str]:
    """What makes a class other than Llama: window, sinks, state, MLA, MoE, cap."""
    try:
        text, composite = small(text_config(config)), is_composite(config)
    except UserError:  # no text part can be told
        text, composite = config, True
    values = text.to_dict()
    types = {
        str(kind)
        for value in values.values()
        if isinstance(value, list)
        for kind in value
        if isinstance(kind, str)
    }
    names = [name for name, _ in model.named_parameters()]
    modules = {type(module).__name__ for module in model.modules()}
    state = (
        "Mamba",
        "DeltaNet",
        "ShortConv",
        "Rwkv",
        "xLSTM",
        "KimiDelta",
        "RgLru",
        "Lightning",
        "Recurrent",
    )
    kinds = " ".join(types)
    found = {
        "window": "sliding" in kinds or "chunked" in kinds or "local" in kinds or bool(_window(values)),
        "sinks": any("sink" in name for name in names),
        "state": keeps_state(text) or any(word in name for name in modules for word in state),
        "MLA": bool(values.get("kv_lora_rank")),
        "MoE": experts(text) > 1,
        "images": composite,
        "cap": bool(values.get("attn_logit_softcapping")) or bool(values.get("final_logit_softcapping")),
    }
    return [name for name, there in found.items() if there]


def _window(values: dict[str, Any]) -> Any:
    """A window that all layers have."""
    used = values.get("use_sliding_window", True) is not False and not values.get("layer_types")
    return values.get("sliding_window") if used else None


# ---- sequence parallelism


def parallel_error(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, Any]:
    """Two processes share the rows by the exchange `gather`: the worst error against one process, or the refusal."""
    model = build_small(model_class, config)
    rows = numeric.examples()
    set_attention(find_causal_lm(model), ATTENTION)
    with Float64():
        expected = numeric.outcome(model, lambda: pair_logps(model, pack(rows)))
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for rank in range(2):
            pid = os.fork()
            if pid == 0:
                _share(model, rank, folder, expected)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        try:
            return dict(json.loads((Path(folder) / "result").read_text()))
        except OSError:
            return {"exact": False, "sentence": "the processes died"}


def _share(model: torch.nn.Module, rank: int, folder: str, expected: Any) -> None:
    """One of the two processes; the first one writes what came out."""
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(os.path.join(folder, "store"), 2), rank=rank, world_size=2
        )
        over = start_parallel("gather", 2)
        batch = pack(numeric.examples())
        with Float64():
            loss, own = numeric.outcome(model, lambda: pair_logps(model, batch, parallel=over))
        summed: dict[str, torch.Tensor | None] = {}
        for name, value in own.items():
            total = (
                torch.zeros(dict(model.named_parameters())[name].shape) if value is None else value.clone()
            )
            total = total.double()
            dist.all_reduce(total)
            summed[name] = total / 2
        found = numeric.compare((loss, summed), expected, numeric.TOLERANCE[torch.float64])
        said: dict[str, Any] = {"exact": found.exact, "gradient": found.gradient}
    except Exception as error:  # the class's, ours or torch's: the row says which
        said = {"exact": False, "sentence": first_line(error)[:300]}
    if rank == 0 or "sentence" in said:
        (Path(folder) / "result").write_text(json.dumps(said))
    os._exit(0)


# ---- a process a class


def in_a_process(architecture: Architecture) -> dict[str, Any]:
    """`examine` in a child with limits of memory and time, so that no class ends the sweep."""
    reading, writing = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        try:
            row = examine(architecture)
        except BaseException as error:
            row = {"verdict": "traceback", "sentence": f"{type(error).__name__}: {first_line(error)}"[:300]}
        with os.fdopen(writing, "w") as pipe:
            json.dump(row, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    row = (
        json.loads(said) if said else {"verdict": "traceback", "sentence": f"ended by signal {status & 127}"}
    )
    return row | {"seconds": round(time.monotonic() - begun, 1)}  # type: ignore[no-any-return]


__all__ = ["UNPROVEN", "Architecture", "architectures", "in_a_process"]
