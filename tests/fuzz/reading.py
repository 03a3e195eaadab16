"""What the commands do with an input, in this process: a sentence, a result, or a `FoundError` that should not be."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import files, words

SECONDS = 20  # that one input may take; the slowest good ones take two


class TooLongError(BaseException):
    """An input was not done in time. No `Exception`, so that nobody catches it on the way."""


class FoundError(Exception):
    """An input that ended in no sentence; the message says in what instead."""


class Place:
    """Folders of one run: inputs lie in `in`, and a command may write into `out` and the caches alone.

    Args:
        folder: is made; the process then lives in it: its home, its caches, its working directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.inputs, self.kept, self.out = (self.folder / name for name in ("in", "keep", "out"))
        self.work, self.unpacked = self.folder / "a" / "b" / "work", self.folder / "tmp"
        for each in (self.inputs, self.kept, self.out, self.work, self.unpacked, self.folder / "cache"):
            each.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Variables that keep a process in here: set before it imports torch and its like."""
        return {
            "HOME": str(self.folder / "cache"),
            "ALIGN_CACHE": str(self.folder / "cache" / "align"),
            "HF_HOME": str(self.folder / "cache" / "hf"),
            "HF_DATASETS_CACHE": str(self.folder / "cache" / "datasets"),
            "TMPDIR": str(self.unpacked),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def furnish(self) -> None:
        """Makes the files that no input may change: a model, rows."""
        from tests.rows import make_rows
        from tests.tiny import save_tiny

        if not (self.kept / "model").is_dir():
            save_tiny(self.kept / "model")
            make_rows(self.kept / "rows.jsonl")

    @property
    def names(self) -> dict[str, str]:
        """Paths that stand for the words of `words.BASES`."""
        return {
            "ROWS": str(self.kept / "rows.jsonl"),
            "MODEL": str(self.kept / "model"),
            "FOLDER": str(self.kept),
            "OUT": str(self.out),
        }

    def state(self) -> dict[str, str]:
        """What no input may change: every file outside of `out` and the caches, with its content."""
        free = {self.out, self.folder / "cache"}
        found = {}
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if Path(place, name) not in free]
            for name in (*folders, *names):
                path = Path(place, name)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""
                found[str(path.relative_to(self.folder))] = digest
        return found


@cache
def _inspect_config(model: str) -> Any:
    from align.runs.api import compose

    return compose("inspect", ["data.path=none", f"model.path={model}", "rows=2"])


def read_rows(path: Path, place: Place) -> None:
    """As `align inspect data.path=…` reads them, and as `pipeline=rows` does."""
    from align import inspect
    from align.synthesis.existing import ExistingRows

    config = _inspect_config(place.names["MODEL"])
    config.data.path = str(path)
    config.data.eval_size = 0.3 if path.stat().st_size % 2 else 0
    inspect.inspect(config)
    ExistingRows(str(path)).read()


def read_documents(path: Path, place: Place) -> None:
    """As `align synthesize pipeline.documents=…` reads them: texts, their fingerprint, their tokens."""
    from rich.console import Console

    from align.documents.lengths import show_documents, token_counts
    from align.documents.loading import fingerprint, load_documents

    documents = load_documents(str(path))
    fingerprint(documents)
    show_documents(token_counts(documents, _tokenizer(), Console()), {}, Console())


@cache
def _tokenizer() -> Any:
    from tests.tiny import tiny_tokenizer

    return tiny_tokenizer()


def read_questions(path: Path, place: Place) -> None:
    """As `align evaluate suite=questions suite.path=…` reads them, and asks a model that knows one word."""
    from align.evaluation.questions import Questions
    from tests.evaluation.helpers import Answers, evaluation

    output = place.out / "questions"
    shutil.rmtree(output, ignore_errors=True)
    suite = Questions(path=str(path))
    suite.check()
    suite.run(evaluation(output, Answers(lambda prompt: "w10"), tokenizer=_tokenizer()))


def run_words(command: str, given: list[str]) -> None:
    """As the command checks its words before it reads rows or weights; small ones run whole."""
    from align.runs.api import check_overrides, compose

    check_overrides(command, given)
    config = compose(command, given)
    if command == "train":
        _check_training(config)
    elif command == "rounds":
        from align.core.config import typed
        from align.rounds import RoundsSettings, plan

        plan(typed(RoundsSettings, config, ""))
    else:
        import align

        module: Any = getattr(align, command)
        whole = command in ("inspect", "plan") or not hasattr(module, "check")
        step: Callable[[Any], Any] = getattr(module, command if whole else "check")
        step(config)


def _check_training(config: Any) -> None:
    from align.data.sources import check_row_paths
    from align.evaluation.in_training import check_suites
    from align.evaluation.suite import build_suites
    from align.runs import jobs
    from align.runs.folder import check_resume
    from align.training.run import check
    from align.training.settings import read_settings

    settings = read_settings(config)
    check_row_paths(settings.data)
    check_resume(settings.resume)
    jobs.read_launch(config)
    suites = build_suites(config)
    check_suites(suites, check(config).arguments)


READERS: dict[str, tuple[Callable[[Random], files.Content], Callable[[Path, Place], None], str]] = {
    "rows": (files.rows_file, read_rows, "inspect"),
    "documents": (files.document_file, read_documents, "synthesize"),
    "questions": (files.question_file, read_questions, "evaluate"),
}
KINDS = (*READERS, "words")


def drawn(kind: str, seed: str) -> Any:
    """The input of a seed: a file's name and content, or a command and its words."""
    random = Random(f"{kind} {seed}")
    return words.command_line(random) if kind == "words" else READERS[kind][0](random)


def tried(kind: str, given: Any, place: Place) -> str | None:
    """What an input ended in: a sentence, or None for a result.

    Raises:
        FoundError: it ended in something else, took too long, or changed a file that is none of its own.
    """
    before = place.state()
    if kind == "words":
        command, line = given
        line = words.filled(line, place.names)
        said = _ended(lambda: run_words(command, line), command, line)
    else:
        _, read, command = READERS[kind]
        folder = place.inputs / "one"
        try:
            path = files.put(given, folder)
            laid = place.state()
            said = _ended(lambda: read(path, place), command, [])
            _compare(laid, place.state(), said)
        finally:
            shutil.rmtree(folder)
    _compare(before, place.state(), said)
    return said


def _compare(before: dict[str, str], after: dict[str, str], said: str | None) -> None:
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        raise FoundError(f"changed {', '.join(changed[:5])} (and said {said})")


def _ended(work: Callable[[], None], command: str, line: list[str]) -> str | None:
    from align.runs.sentences import sentence

    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        with _limited(), warnings.catch_warnings(), contextlib.redirect_stdout(stream):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                work()
        return None
    except TooLongError:
        raise FoundError(f"took more than {SECONDS} s") from None
    except SystemExit as end:
        raise FoundError(f"SystemExit({end.code})") from end
    except Exception as error:
        said = sentence(error, command=command, overrides=line)
        if said is None:
            raise FoundError(shown(error)) from error
        if not said.strip() or "\n" in said or "Traceback" in said:
            raise FoundError(f"no sentence in one line: {said!r}") from error
        return said


def shown(error: BaseException) -> str:
    """Type, message and the last place in our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f"{os.sep}align{os.sep}" in f.filename and "site-packages" not in f.filename]
    where = f" at {'/'.join(Path(ours[-1].filename).parts[-3:])}:{ours[-1].lineno}" if ours else ""
    message = str(error).splitlines()[0][:200] if str(error).strip() else ""
    return f"{type(error).__name__}: {message}{where}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*unused: Any) -> None:
        raise TooLongError

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def command_of(kind: str, given: Any, place: Place) -> list[str]:
    """The same as a command line of its own, for a process that has imported nothing."""
    out = f"output={place.out / 'whole'}"
    model = f"model.path={place.names['MODEL']}"
    start = [sys.executable, "-m"]
    if kind == "words":
        command, line = given
        extra = [out] if command in ("train", "synthesize", "evaluate") else []
        return [*start, f"align.{command}", *extra, *words.filled(line, place.names)]
    path = f"'{files.put(given, place.inputs / 'whole')}'"
    line = {
        "rows": ["align.inspect", f"data.path={path}", model],
        "documents": [
            "align.synthesize",
            f"pipeline.documents={path}",
            model,
            out,
            "pipeline.max_documents=0",
        ],
        "questions": ["align.evaluate", "suite=questions", f"suite.path={path}", model, out, "suite.limit=1"],
    }[kind]
    return [*start, *line]
