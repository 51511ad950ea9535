"""Of several operators one leads, whatever their clocks say."""

import copy

import pytest

from uncurtail.adapters.kubernetes_api import KubeError
from uncurtail.operating.lease import LAST_S, RENEW_WITHIN_S, Lease

PLACE = ("flower-system", "uncurtail-operator")


class Leases:
    """The one Lease at the server, as an `Api`."""

    def __init__(self):
        self.thing = None
        self.down = False

    def _check(self):
        if self.down:
            raise KubeError("down")

    def find(self, path):
        self._check()
        return copy.deepcopy(self.thing)

    def call(self, method, path, body, kind="", **query):
        self._check()
        known = None if self.thing is None else self.thing["metadata"]["resourceVersion"]
        if body["metadata"].get("resourceVersion") != known:
            raise KubeError("conflict", code=409)
        self.thing = copy.deepcopy(body)
        self.thing["metadata"]["resourceVersion"] = str(int(known or 0) + 1)
        return copy.deepcopy(self.thing)


class World:
    def __init__(self):
        self.now = 1000.0
        self.server = Leases()
        self.stamps = 0

    def operator(self, name):
        return Lease(self.server, PLACE, name, monotonic=lambda: self.now, stamp=self._stamp)  # type: ignore[arg-type]

    def _stamp(self):
        self.stamps += 1
        return f"2020-01-01T00:00:00.{self.stamps:06d}Z"  # a clock that is years behind


@pytest.fixture
def world():
    return World()


def test_one_leads_and_the_other_takes_over_only_when_the_lease_ran_out(world):
    one, two = world.operator("one"), world.operator("two")
    one.turn()
    two.turn()
    assert (one.held, two.held) == (True, False)
    for _ in range(10):
        world.now += 3.0
        one.turn()
        two.turn()
    assert (one.held, two.held) == (True, False)
    died = world.now
    while not two.held:
        world.now += 1.0
        two.turn()
        assert not (one.held and two.held)
    assert world.now - died > LAST_S


def test_who_cannot_renew_stops_before_another_may_begin(world):
    one = world.operator("one")
    one.turn()
    world.server.down = True
    world.now += RENEW_WITHIN_S
    with pytest.raises(KubeError):
        one.turn()
    assert not one.held
    assert RENEW_WITHIN_S < LAST_S


def test_who_leaves_hands_over_at_once(world):
    one, two = world.operator("one"), world.operator("two")
    one.turn()
    one.give_up()
    two.turn()
    assert (one.held, two.held) == (False, True)
    assert world.server.thing["spec"]["leaseTransitions"] == 3


def test_of_two_that_take_it_at_once_one_is_told_so(world):
    one, two = world.operator("one"), world.operator("two")
    seen = world.server.find("")
    one.turn()
    world.server.find = lambda path: seen  # what two read before one wrote
    two.turn()
    assert (one.held, two.held) == (True, False)
