"""Whoever has to go is told, has the time it was promised, and goes once it is done."""

import pytest

from uncurtail.operator.drain import drain, spared
from uncurtail.operator.names import DRAIN_REQUESTED_AT, DRAINED
from uncurtail.operator.observed import iso

NOW = 1_800_000_000.0
TIMEOUT_S = 60.0


def pod(name="p-0", told_s=None, *, drained=False, phase="Running", ending=False, mark=None):
    notes = {}
    if told_s is not None:
        notes[DRAIN_REQUESTED_AT] = iso(NOW - told_s)
    if mark is not None:
        notes[DRAIN_REQUESTED_AT] = mark
    if drained:
        notes[DRAINED] = "true"
    meta = {"name": name, "annotations": notes}
    if ending:
        meta["deletionTimestamp"] = iso(NOW)
    return {"metadata": meta, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("one", "mark", "waits", "wake_s"),
    [
        pytest.param(pod(), True, True, 60.0, id="not-told"),
        pytest.param(pod(told_s=10), False, True, 50.0, id="told"),
        pytest.param(pod(told_s=60), False, False, None, id="out-of-time"),
        pytest.param(pod(told_s=9999), False, False, None, id="long-ago"),
        pytest.param(pod(told_s=1, drained=True), False, False, None, id="done"),
        pytest.param(pod(drained=True), True, True, 60.0, id="done-before-it-was-told"),
        pytest.param(pod(phase="Pending"), False, False, None, id="never-ran"),
        pytest.param(pod(phase="Failed"), False, False, None, id="failed"),
        pytest.param(pod(ending=True), False, False, None, id="ending-already"),
        pytest.param(pod(told_s=-3), False, True, 60.0, id="clock-a-little-behind"),
        pytest.param(pod(told_s=-3600), True, True, 60.0, id="told-in-the-future"),
        pytest.param(pod(mark="yes please"), True, True, 60.0, id="no-time"),
        pytest.param(pod(mark="2020-01-01T00:00:00"), True, True, 60.0, id="no-zone"),
    ],
)
def test_a_pod_that_has_to_go(one, mark, waits, wake_s):
    step = drain([one], NOW, TIMEOUT_S)
    assert step.mark == (("p-0",) if mark else ())
    assert step.waiting == (("p-0",) if waits else ())
    assert step.wake_s == wake_s


def test_without_notice_nobody_is_told():
    assert drain([pod()], NOW, 0.0).waiting == ()


def test_the_first_that_is_out_of_time_wakes():
    step = drain([pod("a", told_s=50), pod("b", told_s=20), pod("c")], NOW, TIMEOUT_S)
    assert (step.mark, step.wake_s) == (("c",), 10.0)


def test_only_who_was_told_and_still_lives_is_spared():
    pods = [pod("a", told_s=1), pod("b"), pod("c", told_s=1, ending=True)]
    assert spared(pods) == ("a",)
