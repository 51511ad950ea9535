"""Power limits of NVIDIA GPUs: set while a site trains capped, and put back as they were found.

A limit outlives the process that sets it. So what was found is on disk before anything is set, and
whoever comes next puts it back from there: the end of the session, the next session, or those who
find that a session is gone. A limit that somebody else has changed meanwhile is left alone.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from uncurtail.runfolder import write_atomic

RECORD = "gpu-limits.json"
# The driver counts in mW; what it says of a limit that it was given may differ by its rounding.
SAME_W = 1.0


class GpuError(Exception):
    """The driver is not there or refuses; one line, with the remedy where there is one."""


class Gpus(Protocol):
    """The power limits of this machine's GPUs, by UUID."""

    def limit_w(self, uuid: str) -> float:
        """The limit in force.

        Raises:
            GpuError: It cannot be read.
        """
        ...

    def set_limit_w(self, uuid: str, watts: float) -> None:
        """Change the limit.

        Raises:
            GpuError: It is not permitted, or not a limit of this GPU; it stays as it was.
        """
        ...


class NvmlGpus:
    """The GPUs as NVIDIA's management library knows them; to set a limit it needs root.

    The driver is looked for at the first call.
    """

    def limit_w(self, uuid: str) -> float:
        """The limit in force."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            return float(nvml.nvmlDeviceGetPowerManagementLimit(handle)) / 1000.0
        except nvml.NVMLError as error:
            raise GpuError(f"the power limit of {uuid} cannot be read: {error}") from None

    def set_limit_w(self, uuid: str, watts: float) -> None:
        """Change the limit, until somebody changes it again or the machine restarts."""
        nvml, what = self._nvml, f"the power limit of {uuid} cannot be set to {watts:g} W"
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            nvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1000.0))
        except nvml.NVMLError_NoPermission:
            raise GpuError(f"{what}: only root may") from None
        except nvml.NVMLError as error:
            raise GpuError(f"{what}: {error}") from None

    @cached_property
    def _nvml(self) -> Any:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise GpuError(f"power limits need an NVIDIA driver: {error}") from None
        return pynvml


class GpuLimits:
    """The GPUs of one site, limited to `watts` each or as they were found."""

    def __init__(self, gpus: Gpus, uuids: Sequence[str], watts: float, record: Path) -> None:
        self._gpus = gpus
        self._uuids = uuids
        self._watts = watts
        self._record = record

    def cap(self) -> None:
        """Limit every GPU; one whose limit is lower already keeps it.

        Raises:
            GpuError: One cannot be limited; all are as they were found.
        """
        self.restore()
        found = {uuid: self._gpus.limit_w(uuid) for uuid in self._uuids}
        to_set = [uuid for uuid, limit_w in found.items() if limit_w > self._watts]
        rows = {uuid: {"found_w": found[uuid], "set_w": self._watts} for uuid in to_set}
        write_atomic(self._record, json.dumps(rows, indent=1) + "\n")
        try:
            for uuid in to_set:
                self._gpus.set_limit_w(uuid, self._watts)
        except GpuError:
            self.restore()
            raise

    def restore(self) -> None:
        """Put back what was found, by this session or by one before.

        Raises:
            GpuError: One limit could not be put back; the record stays.
        """
        why = restore(self._record, self._gpus)
        if why is not None:
            raise GpuError(why)


def restore(record: Path, gpus: Gpus | None = None) -> str | None:
    """Put back the limits of a record and remove it; without one there is nothing to do.

    Args:
        record: What `GpuLimits` wrote.
        gpus: Whose; by default this machine's, which are asked only if there is a record.

    Returns:
        Why not all is as it was found, or None. The record then stays for the next to try.
    """
    problems: list[str] = []
    try:
        rows = json.loads(record.read_text(encoding="utf-8"))
        gpus = NvmlGpus() if rows and gpus is None else gpus
        for uuid, row in rows.items():
            assert gpus is not None
            problems += _put_back(gpus, uuid, float(row["found_w"]), float(row["set_w"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problems.append(f"{record.name}: {type(error).__name__}: {error}")
    if problems:
        return "; ".join(problems)
    record.unlink(missing_ok=True)
    return None


def _put_back(gpus: Gpus, uuid: str, found_w: float, set_w: float) -> list[str]:
    try:
        if abs(gpus.limit_w(uuid) - set_w) <= SAME_W:
            gpus.set_limit_w(uuid, found_w)
    except GpuError as error:
        return [str(error)]
    return []
