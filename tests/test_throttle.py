"""Capped training at a site: by a limiter, or by pauses that give the declared speed on average."""

from dataclasses import dataclass, field

import pytest

from uncurtail.adapters.gpu_limits import GpuError
from uncurtail.site.throttle import LOOK_EVERY_S, Throttle


@dataclass
class FakeTime:
    """Time passes by pauses, and by work that the test says was done."""

    now_s: float = 100.0
    paused_s: float = 0.0

    def now(self):
        return self.now_s

    def pause(self, seconds):
        self.now_s += seconds
        self.paused_s += seconds


@dataclass
class FakeLimiter:
    refuses: bool = False
    keeps: bool = False  # what it was told to let go
    said: list[str] = field(default_factory=list)

    def cap(self):
        self.said.append("cap")
        if self.refuses:
            raise GpuError("only root may")

    def restore(self):
        self.said.append("restore")
        if self.keeps:
            raise GpuError("only root may")


def throttle(time, limiter=None, speed=0.8) -> Throttle:
    return Throttle(speed, limiter, time.now, time.pause)


def work(own, time, steps_s, ended=lambda: False) -> None:
    own.work()
    for seconds in steps_s:
        time.now_s += seconds
        own.rest(ended)


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.0])
def test_steps_and_pauses_together_have_the_declared_speed(speed):
    time = FakeTime()
    own = throttle(time, speed=speed)
    own.set(capped=True)
    work(own, time, [1.0, 0.3, 2.7])
    assert 4.0 / (4.0 + time.paused_s) == pytest.approx(speed)


def test_at_full_power_nothing_pauses():
    time = FakeTime()
    own = throttle(time)
    work(own, time, [1.0, 1.0])
    own.set(capped=True)
    own.set(capped=False)
    work(own, time, [1.0])
    assert time.paused_s == 0.0


def test_a_pause_ends_with_the_order_and_with_the_cap():
    time = FakeTime()
    own = throttle(time, speed=0.1)
    own.set(capped=True)
    work(own, time, [10.0], ended=lambda: time.paused_s >= 1.0)
    assert time.paused_s == pytest.approx(1.0)

    def clears():
        own.set(capped=time.paused_s < 2.0)
        return False

    work(own, time, [10.0], ended=clears)
    assert time.paused_s == pytest.approx(2.0, abs=2 * LOOK_EVERY_S)


def test_a_limiter_is_told_each_change_once_and_then_nothing_pauses():
    time, limiter = FakeTime(), FakeLimiter()
    own = throttle(time, limiter)
    for capped in (True, True, False, False, True):
        own.set(capped=capped)
        work(own, time, [1.0])
    assert limiter.said == ["cap", "restore", "cap"]
    assert time.paused_s == 0.0
    assert own.trouble is None


def test_where_the_limiter_is_refused_the_trainer_pauses_and_says_so_once():
    time, limiter = FakeTime(), FakeLimiter(refuses=True)
    own = throttle(time, limiter, speed=0.5)
    for capped in (True, False, True):
        own.set(capped=capped)
    work(own, time, [3.0])
    assert limiter.said == ["cap"]
    assert time.paused_s == pytest.approx(3.0)
    assert own.trouble == "only root may; the trainer pauses between steps instead"


def test_a_limit_that_stays_at_full_power_is_told_as_what_it_is():
    time, limiter = FakeTime(), FakeLimiter(keeps=True)
    own = throttle(time, limiter)
    for capped in (True, False):
        own.set(capped=capped)
    work(own, time, [1.0])
    assert time.paused_s == 0.0
    assert own.trouble == "only root may; the end of the session tries again"


def test_a_site_without_capped_operation_is_never_capped():
    own = Throttle()
    own.set(capped=True)
    assert not own.capped
    assert not own.pauses()
