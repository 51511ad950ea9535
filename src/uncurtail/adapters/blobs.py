"""The payload plane: weights, deltas and commits in an object store, named by their hash."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, from_url

log = logging.getLogger("uncurtail.blobs")

PIECE_BYTES = 1 << 20


class BlobError(RuntimeError):
    """An object is missing, damaged, or the store cannot be reached."""


class UnusableError(BlobError):
    """The store answered: the object is not there, or is damaged. Asking again does not help."""


class Blobs(Protocol):
    """What the coordinator and the sites need of a store."""

    def put(self, key: str, data: bytes) -> None:
        """Write whole or not at all."""
        ...

    def get(self, key: str) -> bytes:
        """Read whole; BlobError when it is not there."""
        ...


class ObjectStore:
    """A run's folder (default), or its own prefix at any URL that obstore speaks, s3:// first."""

    def __init__(self, url: str | None, folder: Path) -> None:
        """Name the store; nothing is read or written yet.

        Raises:
            ValueError: The URL is none that obstore speaks.
        """
        if url is None:
            self._store: Any = LocalStore(folder, mkdir=True)
        else:
            try:
                self._store = from_url(f"{url.rstrip('/')}/{folder.name}")
            except BaseError as error:
                why = str(error).splitlines()[0]
                raise ValueError(f"store.url {url!r}: {why}: write file:// or s3://") from None
        self._mirror = None if url is None else folder

    def put(self, key: str, data: bytes | Path) -> None:
        """Write whole or not at all. A file's content is never in memory as a whole.

        Raises:
            BlobError: The store refused.
        """
        try:
            obstore.put(self._store, key, data)
        except (BaseError, OSError) as error:
            raise BlobError(f"cannot write {key}: {error}") from error

    def put_new(self, key: str, data: bytes) -> bool:
        """Write whole only if nothing is there; False when something was: another won.

        What is written to a remote store this way is also copied into the run's folder.

        Raises:
            BlobError: The store refused for another reason.
        """
        try:
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise BlobError(f"cannot write {key}: {error}") from error
        self._copy(key, data)
        return True

    def copy_missing(self, prefix: str) -> None:
        """Copy into the run's folder what a kill kept from being copied when it was written.

        Raises:
            BlobError: The store cannot be reached.
        """
        if self._mirror is None:
            return
        for key in self.keys(prefix):
            if not (self._mirror / key).exists():
                self._copy(key, self.get(key))

    def _copy(self, key: str, data: bytes) -> None:
        """Keep a copy in the run's folder, whole or not at all, where the store is elsewhere."""
        if self._mirror is not None:
            LocalStore(self._mirror, mkdir=True).put(key, data)

    def put_hashed(self, data: bytes) -> str:
        """Write under its own hash, and return that key. Writing twice is writing once."""
        key = f"objects/{hashlib.sha256(data).hexdigest()}"
        self.put(key, data)
        return key

    def get(self, key: str) -> bytes:
        """Read whole, and check the hash where the key is one.

        Raises:
            UnusableError: It is not there, or is damaged.
            BlobError: The store cannot be reached, or cannot read it now.
        """
        try:
            data = bytes(obstore.get(self._store, key).bytes())
        except (FileNotFoundError, NotFoundError) as error:
            raise UnusableError(f"{key} is not there") from error
        except (BaseError, OSError) as error:
            raise BlobError(f"cannot read {key}: {error}") from error
        if key.startswith("objects/") and hashlib.sha256(data).hexdigest() != key[8:]:
            raise UnusableError(f"{key} is damaged: its hash is another")
        return data

    def stream(self, key: str) -> Iterator[bytes]:
        """An object in pieces, unchecked: whoever puts them together checks the hash.

        Raises:
            UnusableError: It is not there; at once, before the first piece is asked for.
            BlobError: The store cannot be reached.
        """
        try:
            pieces = obstore.get(self._store, key).stream(min_chunk_size=PIECE_BYTES)
        except (FileNotFoundError, NotFoundError) as error:
            raise UnusableError(f"{key} is not there") from error
        except (BaseError, OSError) as error:
            raise BlobError(f"cannot read {key}: {error}") from error
        return (bytes(piece) for piece in pieces)

    def keys(self, prefix: str) -> list[str]:
        """Every key below a prefix, sorted.

        Raises:
            BlobError: The store cannot be reached.
        """
        try:
            listed = obstore.list(self._store, prefix).collect()
        except (BaseError, OSError) as error:
            raise BlobError(f"cannot list {prefix}: {error}") from error
        return sorted(str(item["path"]) for item in listed)

    def retire(self, keep: Iterable[str], before_round: int) -> None:
        """Delete models that are not kept, and updates of `before_round` and earlier.

        What cannot be deleted now is deleted with the next commit.
        """
        kept = set(keep)
        try:
            old = [key for key in self.keys("objects") if key not in kept]
            for key in self.keys("updates"):
                number = key.split("/")[2]
                if number.isdecimal() and int(number) <= before_round:
                    old.append(key)
            self.delete(old)
        except BlobError as error:
            log.warning("%s", error)

    def set_aside(self, key: str) -> None:
        """Move an object that cannot be used out of the way, keeping it for a person to look at.

        Raises:
            BlobError: The store cannot be reached.
        """
        try:
            obstore.rename(self._store, key, f"broken/{key}")
        except (BaseError, OSError) as error:
            raise BlobError(f"cannot set {key} aside: {error}") from error

    def delete(self, keys: list[str]) -> None:
        """Remove objects; what is gone already is fine."""
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise BlobError(f"cannot delete {key}: {error}") from error
