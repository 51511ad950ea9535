"""What `uncurtail data` and `uncurtail tokenizer` do: text in, shards and a vocabulary out."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import progress
from rich.console import Console

from uncurtail import config
from uncurtail.adapters import hub
from uncurtail.config import Config
from uncurtail.errors import UserError
from uncurtail.lm import prepare as preparing
from uncurtail.lm.manifest import TOKENIZER_FILE, Manifest
from uncurtail.lm.sections import DataSection
from uncurtail.lm.sources import Progress
from uncurtail.lm.tokenizer import Tokenizer

STAGES = {
    "download": "Downloading",
    "tokenizer": "Training the tokenizer",
    "tokens": "Writing token shards",
    "check": "Comparing hashes",
}


def prepare_data(settings: Config, folder: Path | None, console: Console) -> Path:
    """Make an experiment's data be there; returns its folder.

    Raises:
        UserError: Something about the text, the network or the folder must be mended first.
    """
    folder = folder or preparing.default_folder(settings.data, settings.model)
    with _bars(console) as tell:
        preparing.prepare(settings.data, settings.model, folder, tell, hub.download_shards)
    return folder


def prepare_command(
    experiment: Path, overrides: list[str], folder: Path | None, console: Console
) -> str:
    """Prepare an experiment's data; what to print."""
    settings = config.load(experiment, overrides)
    usual = preparing.default_folder(settings.data, settings.model)
    folder = prepare_data(settings, folder, console)
    return f"{_described(folder)}\n{_next('run', experiment, overrides, folder, usual)}"


def check_command(
    experiment: Path, overrides: list[str], folder: Path | None, console: Console
) -> str:
    """Compare every byte of prepared data with its manifest; what to print.

    Raises:
        UserError: Something is missing or corrupt; says what to do.
    """
    settings = config.load(experiment, overrides)
    usual = preparing.default_folder(settings.data, settings.model)
    folder = folder or usual
    manifest = Manifest.load(folder)
    with _bars(console) as tell:
        reason = manifest.corruption(folder, lambda share: tell("check", share))
    if reason is not None:
        raise UserError(f"{folder}: {reason}: delete that file, then `uncurtail data prepare`")
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            f"{folder}: {TOKENIZER_FILE} is not the one that its tokens were made with: "
            "put that one back, or delete the folder and run `uncurtail data prepare`"
        )
    return f"Whole: {_described(folder)}\n{_next('run', experiment, overrides, folder, usual)}"


def tokenizer_command(
    experiment: Path, overrides: list[str], out: Path | None, console: Console
) -> str:
    """Train the tokenizer of an experiment's data, or find it made; what to print."""
    settings = config.load(experiment, overrides)
    folder = preparing.default_folder(settings.data, settings.model)
    with _bars(console) as tell:
        tokenizer = preparing.prepare_tokenizer(
            settings.data, settings.model, folder, tell, hub.download_shards
        )
    if out is not None:
        _save(tokenizer, out)
    size, place = tokenizer.vocab_size, out or folder / TOKENIZER_FILE
    return f"{place}: {size:,} tokens\n{_next('data prepare', experiment, overrides)}"


def tokenizer_of_files_command(
    patterns: list[str], vocab_size: int, out: Path, console: Console
) -> str:
    """Train a tokenizer on local files; what to print."""
    section = DataSection(source="files", files=tuple(patterns))
    with _bars(console) as tell:
        tokenizer = preparing.tokenizer_of(section, vocab_size, tell)
    _save(tokenizer, out)
    again = _next("data prepare", Path("EXPERIMENT"), [f"data.tokenizer={out}"])
    return f"{out}: {tokenizer.vocab_size:,} tokens\n{again}"


def _next(
    command: str,
    experiment: Path,
    overrides: list[str],
    folder: Path | None = None,
    usual: Path | None = None,
) -> str:
    """The command that goes on from here, with what was given here."""
    given = list(overrides)
    if folder is not None and folder.absolute() != usual:
        given.append(f"data.folder={folder}")
    words = [str(experiment), *(word for override in given for word in ("--set", override))]
    return f"Next: uncurtail {command} {shlex.join(words)}"


def _save(tokenizer: Tokenizer, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}: name another --out") from error


def _described(folder: Path) -> str:
    manifest = Manifest.load(folder)
    shards = len(manifest.train)
    return (
        f"{folder}: {manifest.train_tokens:,} training tokens in {shards} "
        f"{'shard' if shards == 1 else 'shards'}, {manifest.val_tokens:,} held out, "
        f"{manifest.mean_bytes_per_token:.2f} bytes a token"
    )


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """A bar for each stage that begins; none is shown where nothing has to be done."""
    bars = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.percentage:>3.0f}%"),
        progress.TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, progress.TaskID] = {}

    def fill() -> None:
        """A stage ends where the next begins: the tokenizer may not need all the text."""
        for task in tasks.values():
            bars.update(task, completed=1.0)

    def tell(stage: str, share: float) -> None:
        if stage not in STAGES:
            return
        if stage not in tasks:
            bars.start()  # not before: even without a bar it prints a line
            fill()
            tasks[stage] = bars.add_task(STAGES[stage], total=1.0)
        bars.update(tasks[stage], completed=share)

    try:
        yield tell
        fill()
    finally:
        if tasks:
            bars.stop()
