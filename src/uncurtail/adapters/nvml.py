"""NVML: what NVIDIA GPUs draw, by the driver's energy counters where a GPU has one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from uncurtail.adapters import clock
from uncurtail.adapters.wattmeter import WattError
from uncurtail.core import slots


class Library(Protocol):
    """The part of NVIDIA's management library (`pynvml`) that is asked."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: D102, N802 - its names are the library's

    def nvmlDeviceGetCount(self) -> int: ...  # noqa: D102, N802

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: D102, N802

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...  # noqa: D102, N802

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...  # noqa: D102, N802

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...  # noqa: D102, N802


class Nvml:
    """A `Wattmeter` over some GPUs of this machine: the boards alone, not the node around them."""

    source = "nvml"

    def __init__(
        self,
        devices: str | None = None,
        library: Library | None = None,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:
        """`devices` are indices or UUIDs divided by commas, as in CUDA_VISIBLE_DEVICES; unset: all.

        Indices are those of NVML, which counts by PCI bus: so does CUDA if CUDA_DEVICE_ORDER is
        PCI_BUS_ID.

        Raises:
            WattError: No library, no driver, or no such GPU.
        """
        self._library = _pynvml() if library is None else library
        self._monotonic = monotonic
        try:
            self._library.nvmlInit()
            names: Sequence[str | int] = (
                range(self._library.nvmlDeviceGetCount())
                if devices is None
                else slots.gpus(devices)
            )
            self._handles = [self._handle(name) for name in names]
        except self._library.NVMLError as error:
            which = "" if devices is None else f" {devices}"
            raise WattError(f"no GPU{which} to measure: NVML says {error}") from None
        if not self._handles:
            raise WattError("no GPU to measure: NVML knows none")
        self._before: tuple[float, list[int | None]] | None = None

    def watts(self) -> float | None:
        """See `Wattmeter.watts`; of a GPU that counts no energy, its power now."""
        now = self._monotonic()
        try:
            counts = [self._energy_mj(handle) for handle in self._handles]
            before, self._before = self._before, (now, counts)
            if before is None or now <= before[0]:
                return None
            return sum(
                self._library.nvmlDeviceGetPowerUsage(handle) / 1e3
                if count is None or earlier is None or count < earlier
                else (count - earlier) / 1e3 / (now - before[0])
                for handle, count, earlier in zip(self._handles, counts, before[1], strict=True)
            )
        except self._library.NVMLError as error:
            raise WattError(f"NVML says {error}") from None

    def _handle(self, name: str | int) -> Any:
        if isinstance(name, str) and not name.isdecimal():
            return self._library.nvmlDeviceGetHandleByUUID(name)
        return self._library.nvmlDeviceGetHandleByIndex(int(name))

    def _energy_mj(self, handle: Any) -> int | None:
        """Since the driver was loaded; None of GPUs before Volta, which do not count."""
        try:
            return self._library.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._library.NVMLError:
            return None


def _pynvml() -> Library:
    try:
        import pynvml
    except ImportError:
        raise WattError("NVML needs nvidia-ml-py: pip install nvidia-ml-py") from None
    library: Library = pynvml
    return library
