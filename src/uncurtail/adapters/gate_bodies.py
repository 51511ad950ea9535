"""What may be sent to the gate: how much, how slowly, in which shape. Whole or not at all."""

import asyncio
import errno
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from uncurtail.core.orders import Heart, StepReport

# 10,000 steps, which a trainer keeps while the gate is away, are 1.5 MB.
SMALL_BYTES = 4 << 20
SMALL_WALL_S = 30.0
PIECE_WALL_S = 30.0  # within which something of a large body has to come
BUFFER_BYTES = 1 << 20

_EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
MOST = 1 << 53  # what a database, a CSV reader and numpy still take for a number
LINE = 1000
Count = Annotated[int, Field(ge=0, le=MOST)]

Shape = TypeVar("Shape")


class RefusedError(Exception):
    """A body that is not taken: the status to say so with, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class StateWord:
    """What a session says of itself, several times a second."""

    heart: Heart
    steps: list[StepReport]


class WattsWord(BaseModel):
    """What a session measured of its power."""

    model_config = _EXACT

    watts: float
    source: Literal["nvml", "rapl"]  # what a machine measures itself by


class ConsumedWord(BaseModel):
    """A row of `consumed.jsonl`."""

    model_config = _EXACT

    t: str = Field(max_length=40)
    session: Count
    round: Count
    attempt: Count
    intervals: list[tuple[Count, Count, Count]] = Field(max_length=100_000)
    steps: Count
    tokens: Count
    token_sha256: str = Field(pattern="^[0-9a-f]{64}$")


class IndexWord(BaseModel):
    """`snapshot.json`: the file with the optimizer's state."""

    model_config = _EXACT

    file: str = Field(pattern=r"^optimizer-[0-9a-f]{16}\.safetensors$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    kind: str = Field(max_length=LINE)


for _kind in (Heart, StepReport):
    with_config(_EXACT)(_kind)
STATE = TypeAdapter(with_config(_EXACT)(StateWord))
CONSUMED = TypeAdapter(ConsumedWord)
WATTS = TypeAdapter(WattsWord)
INDEX = TypeAdapter(IndexWord)


@dataclass(frozen=True, slots=True)
class Spool:
    """Where large bodies are gathered, so that none is ever in memory as a whole.

    Beside what they become: a rename makes them that. `free_bytes` of the disk are left alone, for
    the run has to commit there.
    """

    folder: Path
    free_bytes: int

    def clear(self) -> None:
        """Delete what a gate that was killed left behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @asynccontextmanager
    async def gather(self, request: Request, most: int) -> AsyncIterator[Path]:
        """The body as a file, which is gone at the end unless somebody renamed it.

        Raises:
            RefusedError: It is too long, too slow, cut short, or the disk has no room.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            path = Path(file.name)
            try:
                async for piece in _buffered(_pieces(request, most)):
                    await run_in_threadpool(self._write, file.write, piece)
                file.flush()
                await run_in_threadpool(os.fsync, file.fileno())
                yield path
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise RefusedError(507, "no room is left where the run is") from error
                raise
            finally:
                path.unlink(missing_ok=True)

    def _write(self, write: Callable[[bytes], object], piece: bytes) -> None:
        if shutil.disk_usage(self.folder).free - len(piece) < self.free_bytes:
            raise RefusedError(507, "no room is left where the run is")
        write(piece)


async def small(request: Request, most: int = SMALL_BYTES) -> bytes:
    """A body of a few megabytes at most, all of it soon.

    Raises:
        RefusedError: It is longer, slower, or cut short.
    """
    try:
        async with asyncio.timeout(SMALL_WALL_S):
            return b"".join([piece async for piece in _pieces(request, most)])
    except TimeoutError:
        raise RefusedError(408, "the body took too long") from None


def shaped(body: bytes, shape: TypeAdapter[Shape]) -> Shape:
    """A body's JSON, if it is of this shape and nothing more.

    Raises:
        RefusedError: It is not.
    """
    try:
        return shape.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:4])
        raise RefusedError(400, f"not of this version: {where}: {first['msg']}"[:200]) from None


def plain(said: StateWord) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Heartbeat and steps as JSON has them; of a text, one line that a terminal can show.

    Raises:
        RefusedError: A number is no count.
    """
    heart, steps = asdict(said.heart), [asdict(step) for step in said.steps]
    for word in (heart, *steps):
        for name, value in word.items():
            if isinstance(value, int) and not 0 <= value <= MOST:
                raise RefusedError(400, f"{name} is no count")
            if isinstance(value, str):  # for a person, on a terminal
                word[name] = "".join(c if c.isprintable() else " " for c in value[:LINE])
    return heart, steps


def as_sent(body: bytes) -> dict[str, Any]:
    """The object of a body that was found in shape, its keys in their order."""
    return dict(json.loads(body))


async def _pieces(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body as it comes; one that is cut short is none.

    Raises:
        RefusedError: Nothing comes any more, or it is not as long as was said, or too long.
    """
    header = request.headers.get("content-length", "")
    if not header.isdecimal() or len(header) > 15:
        raise RefusedError(411, "how long the body is was not said")
    said, got = int(header), 0
    if said > most:
        raise RefusedError(413, f"too large: {said} bytes, at most {most} are taken")
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(PIECE_WALL_S):
                piece = await anext(stream, None)
        except TimeoutError:
            raise RefusedError(408, "nothing came any more") from None
        except ClientDisconnect:
            raise RefusedError(400, f"{got} bytes came, {said} were announced") from None
        if piece is None:
            break
        got += len(piece)
        if got > said:
            break
        yield piece
    if got != said:
        raise RefusedError(400, f"{got} bytes came, {said} were announced")


async def _buffered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces: each costs a turn of a thread."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) >= BUFFER_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
