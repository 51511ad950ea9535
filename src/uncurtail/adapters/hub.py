"""The Hugging Face Hub: files downloaded in pieces that survive a kill, checked by their hashes.

HF_ENDPOINT names a mirror and HF_TOKEN an account, as everywhere with this Hub. We use the
library's own calls for the protocol; only keeping half a file between runs, and comparing its
hash, is ours: the library starts over after a kill and compares sizes.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from uncurtail.adapters import clock
from uncurtail.errors import UserError
from uncurtail.lm.prepare import cache_folder
from uncurtail.lm.sections import DataSection
from uncurtail.lm.sources import Downloaded, Progress

T = TypeVar("T")

CONNECTIONS = 4
ATTEMPTS = 4  # of a file, when the server fails; each begins where the one before ended
METADATA_TIMEOUT_S = 30.0
HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: where it is, its size, and its hash as the Hub names it."""

    name: str
    url: str
    size_bytes: int
    etag: str
    headers: dict[str, str]

    def place(self, folder: Path) -> Path:
        """Where it goes: named by its content, so that a new commit costs only what it changed."""
        path = Path(self.name)
        return folder / f"{path.stem}-{self.etag[:12]}{path.suffix}"


def download_shards(section: DataSection, tell: Progress) -> Downloaded:
    """The first Parquet files of the section's repository, on this disk and whole.

    What is already here is not fetched again; a file gets its name once its hash is right.

    Raises:
        UserError: No network, no such repository, too few files, or another content than the Hub
            names; says what to do.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it would say, we say
    folder = cache_folder() / "hub" / section.repo.replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    commit, names = _resolve(section)
    bar = _Bar(tell, len(names))

    def fetch(name: str) -> tuple[Path, str]:
        file = _look_up(section.repo, commit, name)
        return _fetch(file, folder, bar), file.etag

    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        futures = [pool.submit(fetch, name) for name in names]
        for future in as_completed(futures):
            future.result()  # the first failure, whatever its place
        files = tuple(future.result() for future in futures)
    finally:
        # after a failure or Ctrl-C, do not begin what is still waiting
        bar.cancelled = True
        pool.shutdown(cancel_futures=True)
    return Downloaded(files, f"{section.repo}@{commit}, {len(files)} files")


class _Cancelled(Exception):  # noqa: N818
    """Another file failed."""


class _Bar:
    """Bytes of several downloads as one share; the mean over files, as later sizes are unknown."""

    def __init__(self, tell: Progress, files: int) -> None:
        self._tell, self._files, self._lock = tell, files, Lock()
        self._shares: dict[str, float] = {}
        self.cancelled = False

    def show(self, name: str, share: float) -> None:
        """A file's share; stops the download of the others when one has failed."""
        if self.cancelled:
            raise _Cancelled
        with self._lock:
            self._shares[name] = min(1.0, share)
            self._tell("download", sum(self._shares.values()) / self._files)

    def for_file(self, file: RemoteFile, done: int) -> type[Any]:
        """What huggingface_hub takes for a progress bar."""
        bar = self

        class FileBar:
            def __init__(self, *_: object, **__: object) -> None:
                self.done = done

            def __enter__(self) -> "FileBar":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, size: int) -> None:
                self.done += size
                bar.show(file.name, self.done / max(1, file.size_bytes))

        return FileBar


def _resolve(section: DataSection) -> tuple[str, list[str]]:
    """The commit that the revision is now, and the names of the first Parquet files there."""
    from huggingface_hub import HfApi

    with _explained(f"{section.repo}, revision {section.revision}"):
        info = _insist(
            lambda: HfApi(endpoint=_endpoint()).dataset_info(
                section.repo, revision=section.revision, timeout=METADATA_TIMEOUT_S
            )
        )
    names = sorted(file.rfilename for file in info.siblings or [])
    names = [name for name in names if name.endswith(".parquet")]
    wanted = section.shards or 0
    if len(names) < wanted or info.sha is None:
        raise UserError(
            f"{section.repo} has {len(names)} Parquet files, not {wanted}: set data.shards to at "
            f"most {len(names)}, or another data.repo"
        )
    return info.sha, names[:wanted]


def _look_up(repo: str, commit: str, name: str) -> RemoteFile:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, name, repo_type="dataset", revision=commit, endpoint=_endpoint())
    with _explained(f"{repo}: {name}"):
        found = get_hf_file_metadata(
            url, timeout=METADATA_TIMEOUT_S, endpoint=_endpoint(), retry_on_errors=True
        )
    if found.etag is None or found.size is None or len(found.etag) not in (40, 64):
        raise UserError(
            f"{url}: the server names no size and hash of this file: set HF_ENDPOINT to a server "
            "that speaks the Hub's protocol"
        )
    headers = build_hf_headers()
    if urlsplit(found.location)[:2] != urlsplit(url)[:2]:
        headers.pop("authorization", None)  # a storage server's signed address; the token is ours
    return RemoteFile(name, found.location, found.size, found.etag, headers)


def _fetch(file: RemoteFile, folder: Path, bar: _Bar) -> Path:
    """The file, from this disk or from the Hub; half a file is kept under another name."""
    path = file.place(folder)
    if path.is_file() and path.stat().st_size == file.size_bytes:
        bar.show(file.name, 1.0)
        return path
    half = path.with_name(f"{path.name}.part")
    missing = file.size_bytes - (half.stat().st_size if half.exists() else 0)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, {file.name} needs {missing / 1e9:.1f} more: "
            "make room, or point XDG_CACHE_HOME elsewhere"
        )
    with _explained(f"{file.name} from {file.url}"):
        _insist(lambda: _continue(file, half, bar))
    if _digest(half, file.etag) != file.etag:
        half.unlink()
        raise UserError(
            f"{file.name} from {file.url} has another hash than the Hub names: nothing was kept; "
            "run it again, and if it stays so, set HF_ENDPOINT to another mirror"
        )
    half.replace(path)
    return path


def _continue(file: RemoteFile, half: Path, bar: _Bar) -> None:
    """Append what is missing to half a file."""
    from huggingface_hub.file_download import http_get

    done = half.stat().st_size if half.exists() else 0
    if done > file.size_bytes:  # no half of this file
        half.unlink()
        done = 0
    with half.open("ab") as target:
        http_get(
            file.url,
            target,
            resume_size=done,
            headers=file.headers,
            expected_size=file.size_bytes,
            displayed_filename=file.name,
            tqdm_class=bar.for_file(file, done),
        )
        target.flush()
        os.fsync(target.fileno())


def _digest(path: Path, etag: str) -> str:
    """The file's hash as the Hub names it: SHA-256 of large files, git's SHA-1 of small ones."""
    if len(etag) == 64:
        hasher = hashlib.sha256()
    else:
        hasher = hashlib.sha1(usedforsecurity=False)
        hasher.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def _endpoint() -> str | None:
    """A mirror in place of huggingface.co; read here, as the library reads it only at import."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _insist(call: Callable[[], T]) -> T:
    """Call again, after a pause, while the server fails."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code < 500 and error.response.status_code != 429:
                raise
            clock.pause(float(2**attempt))
    return call()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the network does into one line with the remedy."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    resume = "run it again, it goes on where it stopped"
    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set: unset it to download") from None
    except HfHubHTTPError as error:
        raise UserError(f"{what}: {_refusal(error.response.status_code, resume)}") from error
    except (HFValidationError, FileMetadataError, InvalidURL) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{what}: {line}: check data.repo and HF_ENDPOINT") from error
    except HTTPError as error:
        reason = str(error) or type(error).__name__
        endpoint = _endpoint() or "https://huggingface.co"
        raise UserError(
            f"{what}: no connection to {endpoint} ({reason}): check the network or HF_ENDPOINT, "
            f"then {resume}"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        line = str(error).splitlines()[0]  # the library's way to say that the body was short
        raise UserError(f"{what}: {line}: {resume}") from error


def _refusal(status: int, resume: str) -> str:
    match status:
        case 401 | 403:
            return f"refused ({status}): set HF_TOKEN to an account that may read it"
        case 404:
            return "not found (404): check data.repo and data.revision"
        case 416:
            return "the server's file is shorter than it says (416): set HF_ENDPOINT to another"
        case _:
            return f"the server answered {status}: {resume}"
