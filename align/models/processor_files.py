"""What a processor leaves beside a composite's weights: how images are cut up, and in some the chat template.

Nothing here makes a processor, which would need the libraries of images and sound: its files are read and copied.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers.utils.hub import cached_file

from align.core.errors import UserError, first_line
from align.core.telling import tell
from align.models.settings import EMBEDDED

COPIED = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_HOLD_TEMPLATE = ("chat_template.json", "processor_config.json")


def copy_processor(path: str | Path, target: Path, *, revision: str | None = None) -> None:
    """Copies a model's processor files into the folder of what was trained from it, where they are not there yet.

    The chat template is not among them: it is saved with the tokenizer, and processors read that.

    Args:
        path: `model.path` of the model trained from, or any folder.
        target: an existing folder.
        revision: of a Hub model.
    """
    if path == EMBEDDED:
        return
    for name in COPIED:
        try:
            found = _file(str(path), name, revision)
            if found is not None and not (target / name).exists():
                shutil.copyfile(found, target / name)
        except OSError as error:
            tell(
                f"{name} of {path} could not be copied ({first_line(error)}): copy it to {target} for use with images."
            )


def processor_template(path: str, *, revision: str | None = None) -> str | None:
    """The chat template that a model's processor alone has (LLaVA's kind); None where it has none.

    Args:
        path: a folder or a Hub id; of the latter without a connection only what was fetched before is looked at.
        revision: of a Hub model.

    Raises:
        UserError: the file that holds it cannot be read.
    """
    for name in _HOLD_TEMPLATE:
        found = _file(path, name, revision, connected=False)
        if found is None:
            continue
        try:
            template = json.loads(found.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{found} cannot be read as JSON: restore it, or remove it.") from error
        if isinstance(template, str):
            return template
    return None


def _file(path: str, name: str, revision: str | None, *, connected: bool = True) -> Path | None:
    """A file of a model, by now on this disk; None where the model has none of that name.

    Args:
        path, name, revision: whose, and which one.
        connected: raise OSError where the Hub cannot be asked.
    """
    found = cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=connected,
    )
    return None if found is None else Path(found)
