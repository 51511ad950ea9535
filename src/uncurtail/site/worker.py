"""The long-lived trainer process of a session: takes orders from a socket, one at a time.

It outlives rounds: model, optimizer state and data stay open. It keeps its last answer until the
next order, so a lost reply can be asked for again without training twice.
"""

import contextlib
import hashlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from uncurtail import wire
from uncurtail.adapters import clock
from uncurtail.adapters.blobs import BlobError
from uncurtail.config import Config
from uncurtail.core.events import iso
from uncurtail.core.leases import split
from uncurtail.core.rounds import Order, Reply, answers, updates_folder
from uncurtail.lm.checkpoint import decode_weights
from uncurtail.lm.trainer import NonFiniteLoss, StepMetrics, Trainer, TrainOrder, TrainResult
from uncurtail.site.keeper import SnapshotKeeper
from uncurtail.site.link import Link
from uncurtail.site.throttle import Throttle
from uncurtail.sync.codec import encode_delta

# A stand-by order waits this long for its round; then it answers with nothing. Without a
# coordinator it waits no longer than the site does (`fleet.orphan_after_wall_s`).
STANDBY_WALL_S = 600.0
UPLOAD_AGAIN_S = 0.5


class Blobs(Protocol):
    """The payload plane, as a site sees it."""

    def get(self, key: str) -> bytes:
        """Read whole, and of the right hash."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write whole or not at all."""
        ...


@dataclass(slots=True)
class Worker:
    """One site's trainer and everything it needs to carry out an order."""

    config: Config
    folder: Path  # sites/SITE
    site: str
    session: int
    link: Link
    blobs: Blobs
    tell: Callable[[Mapping[str, Any]], None]  # the run, of a row of this site's record
    trainer: Trainer
    keeper: SnapshotKeeper
    throttle: Throttle = field(default_factory=Throttle)
    last: Reply | None = None

    def execute(self, order: Order) -> Reply:
        """Carry out an order, or repeat the answer if it was carried out already.

        Never raises for what an order may get wrong: the reply says it.
        """
        if self.last is not None and answers(self.last, order):
            return replace(self.last, attempt=order.attempt)
        try:
            reply = self._train(order)
        except (BlobError, OSError) as error:
            # Not kept: nothing was handed in, and who asks again may find the store within reach.
            return _failed(order, error)
        except (NonFiniteLoss, ValueError) as error:
            reply = _failed(order, error)
        self.last = reply
        if reply.steps:  # also where the coordinator finds it should Flower lose it
            with contextlib.suppress(BlobError):
                self.blobs.put(f"{updates_folder(order)}/reply.json", wire.encode(reply).encode())
        return reply

    def orphaned(self) -> bool:
        """Whether the coordinator has been silent for so long that nobody will ask again."""
        return self.link.silent_s() >= self.config.fleet.orphan_after_wall_s

    def _train(self, order: Order) -> Reply:
        ready = self._await_base(order)
        if ready is None:
            return wire.answer(order)
        started, until = ready
        base = decode_weights(self.blobs.get(started.base or ""))
        self.trainer.load(base)
        should_stop = self._should_stop(order, until)
        self._heed()
        self.throttle.work()
        self.link.doing(stepping=True, round_number=order.round)
        try:
            val_loss = self.trainer.evaluate()[0] if order.evaluate else None
            result = self.trainer.train(
                TrainOrder(order.intervals, started.tokens_at_start, started.sites),
                should_stop,
                lambda metrics: self._stepped(order, metrics, should_stop),
            )
        finally:
            self.link.doing(stepping=False, round_number=order.round)
        if result.steps:
            # Before the answer, which may be what the end of the session waits for; and before the
            # upload, beside which it is written.
            self.keeper.keep(self.trainer.snapshot())
        try:
            update, digest = self._upload(started, result, base)
        except BlobError as error:
            # The steps are on record as consumed: asked again, this is the answer, and not the
            # same steps once more.
            return _failed(order, error)
        return wire.answer(
            replace(order, base_version=started.base_version),
            steps=result.steps,
            tokens=result.tokens,
            mean_loss=result.mean_loss,
            token_sha256=result.token_sha256,
            update=update,
            update_sha256=digest,
            val_loss=val_loss,
        )

    def _await_base(self, order: Order) -> tuple[Order, float] | None:
        """The order with its base, and when (monotonic) to stop; None if it is not to be done."""
        give_up = clock.monotonic() + STANDBY_WALL_S
        while clock.monotonic() < give_up:
            if self._unwanted(order) or self.orphaned():
                return None
            if order.base is not None:
                late = clock.wall() + self.link.wish.skew_s >= order.not_after_wall
                return None if late else (order, clock.monotonic() + order.train_for_wall_s)
            wish = self.link.wish
            announced = wish.announcement
            if announced is not None and announced.epoch == order.epoch:
                if announced.round > order.round:
                    return None
                if announced.round == order.round:
                    complete = replace(
                        order,
                        base_version=announced.base_version,
                        base=announced.base,
                        not_after_wall=announced.not_after_wall,
                        tokens_at_start=announced.tokens_at_start,
                        sites=announced.sites,
                    )
                    return complete, wish.announced_at + announced.close_in_wall_s
            clock.pause(0.02)
        return None

    def _should_stop(self, order: Order, until: float) -> Callable[[], bool]:
        return lambda: clock.monotonic() >= until or self._unwanted(order)

    def _unwanted(self, order: Order) -> bool:
        """Whether a newer coordinator, a newer round, or the end of the window ends this order."""
        wish = self.link.wish
        if wish.epoch is not None and wish.epoch > order.epoch:
            return True
        if not order.intervals:
            return False  # an evaluation: the last thing a site does, also outside its window
        desired = wish.desired
        if desired is not None and desired.epoch >= order.epoch and not desired.train:
            return True
        announced = wish.announcement
        newer = announced is not None and announced.epoch == order.epoch
        return newer and announced is not None and announced.round > order.round

    def _heed(self) -> None:
        """Train at the power that is wanted; the last word holds while there is no newer one."""
        desired = self.link.wish.desired
        if desired is not None and desired.train:
            self.throttle.set(capped=desired.capped)
        self.link.power(capped=self.throttle.capped, trouble=self.throttle.trouble)

    def _stepped(self, order: Order, metrics: StepMetrics, should_stop: Callable[[], bool]) -> None:
        def ended() -> bool:
            self._heed()
            return should_stop()

        self._report(order, metrics)
        self._heed()
        self.throttle.rest(ended)

    def _report(self, order: Order, metrics: StepMetrics) -> None:
        self.link.doing(stepping=True, round_number=order.round, steps=metrics.index)
        self.link.report(
            {
                "round": order.round,
                "epoch": metrics.epoch,
                "step": metrics.step,
                "loss": metrics.loss,
                "tokens": metrics.tokens,
            }
        )

    def _upload(
        self, order: Order, result: TrainResult, base: dict[str, Tensor]
    ) -> tuple[str | None, str]:
        if result.steps == 0:
            return None, ""
        self._record(order, result)
        data = encode_delta(base, self.trainer.weights(), self.config.store.wire_dtype)
        key = f"{updates_folder(order)}/{order.attempt}"
        self._patiently(lambda: self.blobs.put(key, data), order.not_after_wall)
        return key, hashlib.sha256(data).hexdigest()

    def _patiently(self, call: Callable[[], None], not_after_wall: float) -> None:
        """Hand something in while its round may still count it: a round's work hangs on it.

        Raises:
            BlobError: It could not be reached for all that time.
        """
        until_wall = not_after_wall + self.config.rounds.grace_wall_s
        while True:
            try:
                return call()
            except BlobError:
                if self.orphaned() or clock.wall() + self.link.wish.skew_s >= until_wall:
                    raise
            clock.pause(UPLOAD_AGAIN_S)

    def _record(self, order: Order, result: TrainResult) -> None:
        """Append what was consumed to the site's own record, durably, before anyone hears of it.

        Raises:
            BlobError: The run's copy of the record is out of reach.
        """
        consumed, _ = split(order.intervals, result.steps)
        row = {
            "t": iso(clock.wall()),
            "session": self.session,
            "round": order.round,
            "attempt": order.attempt,
            "intervals": [list(interval) for interval in consumed],
            "steps": result.steps,
            "tokens": result.tokens,
            "token_sha256": result.token_sha256,
        }
        with (self.folder / "consumed.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._patiently(lambda: self.tell(row), order.not_after_wall)


def serve(worker: Worker, path: Path) -> None:
    """Answer orders on the socket until the coordinator has been silent for too long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
        listener.settimeout(0.5)
        while not worker.orphaned():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(30.0)
                if _same_user(connection):
                    _answer(worker, connection)


def _answer(worker: Worker, connection: socket.socket) -> None:
    """One order, one answer. A peer that left loses nothing."""
    with (
        contextlib.suppress(ValueError, OSError),
        connection.makefile("rw", encoding="utf-8", newline="\n") as stream,
    ):
        reply = worker.execute(wire.decode_order(stream.readline()))
        stream.write(wire.encode(reply) + "\n")
        stream.flush()


def _failed(order: Order, error: Exception) -> Reply:
    return wire.answer(order, error=f"{type(error).__name__}: {error}")


def _same_user(connection: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder is 0700 all the same
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return bool(uid == os.getuid())
