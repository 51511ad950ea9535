"""GPU power limits: set together or not at all, and put back as they were found by the next one."""

import json
import os
from dataclasses import dataclass, field

import pytest

from uncurtail.adapters.gpu_limits import RECORD, GpuError, GpuLimits, NvmlGpus, restore
from uncurtail.adapters.processes import ProcessProvisioner
from uncurtail.core.fleet import SiteSection
from uncurtail.runfolder import RunFolder


@dataclass
class FakeGpus:
    """Two GPUs in memory. `refuses` are those whose limit nobody here may set."""

    limits_w: dict[str, float] = field(default_factory=lambda: {"GPU-a": 400.0, "GPU-b": 350.0})
    refuses: set[str] = field(default_factory=set)

    def limit_w(self, uuid):
        return self.limits_w[uuid]

    def set_limit_w(self, uuid, watts):
        if uuid in self.refuses:
            raise GpuError(f"{uuid}: only root may")
        self.limits_w[uuid] = watts


FOUND = {"GPU-a": 400.0, "GPU-b": 350.0}


@pytest.fixture
def record(tmp_path):
    return tmp_path / RECORD


def limits(gpus, record, watts=250.0) -> GpuLimits:
    return GpuLimits(gpus, list(gpus.limits_w), watts, record)


def test_a_cap_limits_every_gpu_and_its_end_puts_back_what_was_found(record):
    gpus = FakeGpus()
    ours = limits(gpus, record)
    ours.cap()
    assert gpus.limits_w == {"GPU-a": 250.0, "GPU-b": 250.0}
    ours.cap()  # said again: what was found before is not forgotten
    ours.restore()
    ours.restore()
    assert gpus.limits_w == FOUND
    assert not record.exists()


def test_a_gpu_with_a_lower_limit_keeps_it(record):
    gpus = FakeGpus()
    ours = limits(gpus, record, watts=380.0)
    ours.cap()
    assert gpus.limits_w == {"GPU-a": 380.0, "GPU-b": 350.0}
    ours.restore()
    assert gpus.limits_w == FOUND


def test_a_site_is_capped_whole_or_not_at_all(record):
    gpus = FakeGpus(refuses={"GPU-b"})
    with pytest.raises(GpuError, match="GPU-b: only root may"):
        limits(gpus, record).cap()
    assert gpus.limits_w == FOUND
    assert not record.exists()


def test_whoever_comes_after_a_killed_session_puts_its_limits_back(record):
    gpus = FakeGpus()
    limits(gpus, record).cap()  # ... and kill -9
    assert restore(record, gpus) is None
    assert gpus.limits_w == FOUND
    assert restore(record, gpus) is None


def test_a_session_killed_between_writing_and_setting_has_changed_nothing(record):
    gpus = FakeGpus()
    limits(gpus, record).cap()
    gpus.limits_w["GPU-b"] = 350.0
    assert restore(record, gpus) is None
    assert gpus.limits_w == FOUND


def test_a_limit_that_somebody_else_set_meanwhile_is_left_alone(record):
    gpus = FakeGpus()
    limits(gpus, record).cap()
    gpus.limits_w["GPU-a"] = 200.0
    assert restore(record, gpus) is None
    assert gpus.limits_w == {"GPU-a": 200.0, "GPU-b": 350.0}


def test_what_cannot_be_put_back_now_stays_on_record_for_the_next(record):
    gpus = FakeGpus()
    limits(gpus, record).cap()
    gpus.refuses = {"GPU-a"}
    assert restore(record, gpus) == "GPU-a: only root may"
    assert gpus.limits_w == {"GPU-a": 250.0, "GPU-b": 350.0}
    gpus.refuses = set()
    assert restore(record, gpus) is None
    assert gpus.limits_w == FOUND


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"GPU-a": 3}', '{"GPU-a": {"found_w": "x"}}'])
def test_a_damaged_record_is_said_and_stops_nobody(record, text):
    record.write_text(text)
    gpus = FakeGpus()
    why = restore(record, gpus)
    assert why is not None
    assert why.startswith(RECORD)
    assert gpus.limits_w == FOUND


def test_without_a_record_no_driver_is_asked_for(record):
    assert restore(record) is None
    record.write_text(json.dumps({}))
    assert restore(record) is None


def test_the_provisioner_puts_right_what_a_site_without_a_session_left(tmp_path):
    run = tmp_path / f"test-{os.getpid()}-{tmp_path.name}"
    left = run / "sites" / "duck" / RECORD
    left.parent.mkdir(parents=True)
    left.write_text(json.dumps({}))
    assert ProcessProvisioner(RunFolder(run), {"duck": SiteSection()}, 60.0).alive() == {}
    assert not left.exists()


@pytest.mark.gpu
def test_the_driver_tells_the_limit_of_the_gpu_that_cuda_names():
    """Reads only: a test must not change how a machine's GPUs are set."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("pynvml")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here: the real driver's limits are not read")
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    assert NvmlGpus().limit_w(uuid) > 0.0
