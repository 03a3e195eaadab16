"""What `model.path` names: a folder, a Hub id or the embedded model; looked at without torch."""

from __future__ import annotations

from pathlib import Path

from align.core.errors import UserError
from align.models.embedded import embedded_model, require_package
from align.models.settings import EMBEDDED


def resolve_path(path: str, *, key: str = "model.path") -> str:
    """The folder or Hub id that transformers can load for `key`; converts the embedded model where needed.

    Raises:
        UserError: as `check_path`.
    """
    check_path(path, key=key)
    return str(embedded_model()) if path == EMBEDDED else path


def check_path(path: str, *, key: str = "model.path") -> None:
    """Refuses a path that no model can be loaded from; asks neither the Hub nor torch.

    Raises:
        UserError: the folder does not exist or holds no model, or the embedded package is missing.
    """
    if path == EMBEDDED:
        require_package()
        return
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            if (Path(path) / "adapter_config.json").is_file():
                raise UserError(
                    f"{key}={path} holds a LoRA adapter and no model: `align export path=RUN output=FOLDER` of its run "
                    "makes one."
                )
            raise UserError(
                f"{key}={path} is a folder without config.json: name a folder that holds a model."
            )
        return
    if Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{key}={path} is no model folder: name an existing folder or a Hub id (owner/name).")


def check_weights(path: str, *, key: str = "model.path") -> None:
    """Refuses a folder without weights, which has enough for `align plan` and `align verify` alone.

    Raises:
        UserError: no file in the folder could hold any.
    """
    folder = Path(path)
    if folder.is_dir() and not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        raise UserError(
            f"{key}={path} has a config.json but no weights (*.safetensors or *.bin): name the folder that has both."
        )
