"""Measuring power where a site is: counters that wrap, GPUs that count and that do not."""

import shutil

import pytest

from uncurtail.adapters.nvml import Nvml
from uncurtail.adapters.rapl import POWERCAP, Rapl
from uncurtail.adapters.wattmeter import Reporter, WattError
from uncurtail.core.fleet import SiteSection
from uncurtail.site import start

RANGE_UJ = 262_143_328_850


class Clock:
    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s


@pytest.fixture
def clock():
    return Clock()


def zone(root, folder, name, uj, range_uj=RANGE_UJ):
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (path / "energy_uj").write_text(f"{uj}\n")


@pytest.fixture
def machine(tmp_path):
    """Two packages as the kernel shows them: parts of a package beside the package itself."""
    (tmp_path / "intel-rapl").mkdir()  # the control type, without a counter
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 500_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    zone(tmp_path, "intel-rapl:1", "package-1", RANGE_UJ - 1_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    return tmp_path


def test_packages_and_their_memory_are_summed_and_parts_are_not_counted_twice(machine, clock):
    rapl = Rapl(machine, clock)
    assert rapl.watts() is None, "one look is no power"
    clock.s += 10.0
    zone(machine, "intel-rapl:0", "package-0", 1_000_000 + 800_000_000)
    zone(machine, "intel-rapl:0:0", "core", 500_000 + 700_000_000)
    zone(machine, "intel-rapl:0:1", "dram", 100_000_000)
    zone(machine, "intel-rapl:2", "psys", 900_000_000)
    assert rapl.watts() == pytest.approx(90.0)
    clock.s += 5.0
    assert rapl.watts() == 0.0


def test_a_counter_that_wraps_goes_on(machine, clock):
    rapl = Rapl(machine, clock)
    rapl.watts()
    clock.s += 2.0
    zone(machine, "intel-rapl:1", "package-1", 199_000_000)
    assert rapl.watts() == pytest.approx(100.0)


def test_a_machine_without_counters_says_so(tmp_path):
    with pytest.raises(WattError, match=r"no energy counter in .* needs power_from 'model'"):
        Rapl(tmp_path)


def test_a_counter_that_is_gone_or_no_number_is_said(machine, clock):
    rapl = Rapl(machine, clock)
    (machine / "intel-rapl:0" / "energy_uj").write_text("many\n")
    with pytest.raises(WattError, match="energy_uj cannot be read: invalid literal"):
        rapl.watts()
    shutil.rmtree(machine / "intel-rapl:0")
    with pytest.raises(WattError, match="energy_uj cannot be read"):
        rapl.watts()


def test_a_pause_of_the_clock_is_no_power(machine, clock):
    rapl = Rapl(machine, clock)
    rapl.watts()
    assert rapl.watts() is None


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two GPUs: a counting one of 300 W, and an older one that knows its power alone, 70 W."""

    NVMLError: type[Exception] = NvmlError

    def __init__(self, clock, driver=True):
        self.clock = clock
        self.driver = driver
        self.lost = False
        self.asked: list[object] = []

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise NvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index > 1:
            raise NvmlError("Invalid Argument")
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self.asked.append(uuid)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if handle == 1:
            raise NvmlError("Not Supported")
        return int(self.clock.s * 300_000)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        if self.lost:
            raise NvmlError("GPU is lost")
        return 70_000


def test_gpus_are_summed_by_their_counters_or_else_by_their_power_now(clock):
    nvml = Nvml(None, FakeNvml(clock), clock)
    assert nvml.watts() is None
    clock.s += 15.0
    assert nvml.watts() == pytest.approx(370.0)


@pytest.mark.parametrize(
    ("devices", "asked", "watts"),
    [
        pytest.param("0", [0], 300.0, id="one"),
        pytest.param("1, 0", [1, 0], 370.0, id="two"),
        pytest.param("GPU-5d0f", ["GPU-5d0f"], 300.0, id="uuid"),
    ],
)
def test_only_the_gpus_of_the_slot_are_measured(clock, devices, asked, watts):
    library = FakeNvml(clock)
    nvml = Nvml(devices, library, clock)
    assert library.asked == asked
    nvml.watts()
    clock.s += 15.0
    assert nvml.watts() == pytest.approx(watts)


def test_a_driver_that_was_loaded_again_counts_from_nothing(clock):
    library = FakeNvml(clock)
    nvml = Nvml("0", library, clock)
    nvml.watts()
    library.clock = Clock()
    library.clock.s = 1.0
    clock.s += 15.0
    assert nvml.watts() == 70.0


@pytest.mark.parametrize(
    ("devices", "driver", "message"),
    [
        pytest.param("0", False, "no GPU 0 to measure: NVML says Driver Not Loaded", id="driver"),
        pytest.param("7", True, "no GPU 7 to measure: NVML says Invalid Argument", id="no-such"),
        pytest.param("", True, "no GPU to measure", id="none"),
    ],
)
def test_a_gpu_that_is_not_there_is_said(clock, devices, driver, message):
    with pytest.raises(WattError, match=message):
        Nvml(devices, FakeNvml(clock, driver=driver), clock)


def test_a_gpu_that_falls_off_the_bus_is_said_and_measured_again(clock):
    library = FakeNvml(clock)
    nvml = Nvml("1", library, clock)
    nvml.watts()
    library.lost = True
    clock.s += 15.0
    with pytest.raises(WattError, match="NVML says GPU is lost"):
        nvml.watts()
    library.lost = False
    clock.s += 15.0
    assert nvml.watts() == 70.0


@pytest.mark.gpu
def test_the_real_library_measures_a_real_gpu():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no NVIDIA driver on this machine: {error}")
    nvml = Nvml()
    assert nvml.watts() is None
    watts = nvml.watts()
    assert watts is not None
    assert watts >= 0.0


def test_the_real_counters_are_read_where_there_are_any():
    try:
        rapl = Rapl()
        rapl.watts()
    except WattError as error:
        pytest.skip(f"this machine shows no energy counter: {error}")
    assert POWERCAP.is_dir()


class Scripted:
    source = "scripted"

    def __init__(self, *values):
        self.values = list(values)

    def watts(self):
        value = self.values.pop(0)
        if isinstance(value, Exception):
            raise value
        return value


def test_what_cannot_be_measured_is_not_told_and_is_logged_once(caplog):
    told: list[tuple[float, str]] = []
    meter = Scripted(None, 80.0, WattError("gone"), WattError("gone"), 90.0, WattError("gone"))
    reporter = Reporter(meter, lambda watts, source: told.append((watts, source)))
    for _ in range(6):
        reporter.look()
    assert told == [(80.0, "scripted"), (90.0, "scripted")]
    assert caplog.messages == ["power is not measured: gone"] * 2


def test_the_thread_measures_until_it_is_closed():
    told: list[float] = []

    class Steady:
        source = "steady"

        def watts(self):
            return 5.0

    reporter = Reporter(Steady(), lambda watts, _source: told.append(watts), every_s=0.01)
    reporter.start()
    while len(told) < 3:
        pass
    reporter.close()
    assert set(told) == {5.0}


def test_a_site_that_cannot_measure_starts_all_the_same(caplog):
    section = SiteSection(preset="duck", power_from="nvml", cuda_devices="0")
    if start.wattmeter(section) is None:
        assert caplog.messages[0].startswith("power is not measured: ")
    assert start.wattmeter(SiteSection(preset="duck")) is None
