"""Writes a site's snapshots beside its training: in a thread, so that no order waits for a disk.

While one is not on disk yet a mark lies in the folder: who ends the session waits for it to go.
"""

import threading
from contextlib import suppress
from pathlib import Path

from uncurtail.lm.snapshot import Snapshot, discard_unfinished, write_snapshot
from uncurtail.runfolder import UNFINISHED_SNAPSHOT


class SnapshotKeeper:
    """One snapshot is written at a time; of those that wait meanwhile only the newest is kept.

    A process that is killed leaves the older snapshot in force.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = folder / UNFINISHED_SNAPSHOT
        self._mark.unlink(missing_ok=True)
        discard_unfinished(folder)
        self._next: Snapshot | None = None
        self._writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="snapshots", daemon=True).start()

    def keep(self, snapshot: Snapshot) -> None:
        """Have this one written; the mark lies there when this returns."""
        with self._changed:
            with suppress(OSError):  # without a mark nobody waits: it may be lost, and no more
                self._folder.mkdir(parents=True, exist_ok=True)
                self._mark.touch()
            self._next = snapshot
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> bool:
        """Wait until nothing is left to write; False if that takes too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._next is None and not self._writing, timeout_s
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                snapshot, self._next, self._writing = self._next, None, True
            assert snapshot is not None
            with suppress(OSError):  # a full disk costs the snapshot only
                write_snapshot(self._folder, snapshot)
            del snapshot  # gigabytes, until the next one comes
            with self._changed:
                self._writing = False
                if self._next is None:
                    self._mark.unlink(missing_ok=True)
                self._changed.notify_all()
