"""What all provisioners of machines elsewhere share: no tick waits, and every fault is a line."""

import threading
import time
from dataclasses import dataclass, field

import pytest

from tests.fakecloud import SETTINGS, FakeCloud, provisioner
from uncurtail.adapters.remote import CloudError, RemoteProvisioner
from uncurtail.core.nodes import NodeState


@dataclass
class HungCloud(FakeCloud):
    """Its creations do not come back until somebody lets them."""

    asked: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def create(self, site, session, environment):
        self.asked.set()
        assert self.go_on.wait(30)
        super().create(site, session, environment)


@pytest.fixture
def hung():
    cloud = HungCloud()
    yield cloud
    cloud.go_on.set()


def until(condition, seconds=20.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.005)


def test_no_call_of_the_loop_waits_for_a_cloud_that_hangs(hung):
    fleet = provisioner(hung)
    fleet.start()
    fleet.provision("oslo", 1)
    assert hung.asked.wait(20)
    assert fleet.alive() == {"oslo": frozenset({1})}
    fleet.release("oslo", 1)
    assert fleet.alive() == {"oslo": frozenset({1})}, "it may still be made"
    hung.now += 2 * SETTINGS.call_timeout_wall_s + 1
    assert fleet.trouble == "fake has not finished an answer for 61 s"
    hung.go_on.set()
    until(lambda: hung.made and not hung.nodes)
    fleet.provision("bern", 1)  # wakes the thread
    until(lambda: fleet.alive() == {"bern": frozenset({1})})
    assert [node.site for node in hung.nodes.values()] == ["bern"]
    fleet.close()


def test_a_node_gets_its_environment_and_is_followed_until_it_is_ready():
    cloud = FakeCloud()
    fleet = provisioner(cloud)
    fleet.provision("oslo", 7)
    assert fleet.alive() == {"oslo": frozenset({7})}, "asked for is being made"
    assert fleet.step() == SETTINGS.poll_wall_s
    assert cloud.environments == [{"UNCURTAIL_SITE": "oslo", "UNCURTAIL_SESSION": "7"}]
    cloud.turn("node-1", NodeState.READY)
    fleet.step()
    assert fleet.alive() == {"oslo": frozenset({7})}
    assert fleet.trouble is None


def test_a_machine_that_was_taken_away_ends_its_session():
    cloud = FakeCloud()
    fleet = provisioner(cloud)
    fleet.provision("oslo", 1)
    fleet.step()
    cloud.turn("node-1", NodeState.READY)
    fleet.step()
    cloud.nodes.clear()
    cloud.advance(5.0)
    fleet.step()
    assert fleet.alive() == {}
    assert cloud.made == 1


def test_a_machine_that_fails_at_its_start_is_made_again_and_says_why():
    cloud = FakeCloud()
    fleet = provisioner(cloud)
    fleet.provision("oslo", 1)
    fleet.step()
    cloud.turn("node-1", NodeState.FAILED, "no such GPU")
    fleet.step()
    assert fleet.trouble == "fake says of the node of oslo: no such GPU"
    for _ in range(20):
        cloud.advance(5.0)
        fleet.step()
        assert fleet.alive() == {"oslo": frozenset({1})}
    assert [*cloud.nodes] == ["node-2"]
    assert fleet.trouble is None


def test_a_new_coordinator_goes_on_with_what_the_old_one_left():
    cloud = FakeCloud()
    cloud.make("oslo", 4, NodeState.READY)
    fleet = provisioner(cloud, believed=[("oslo", 4), ("bern", 2)])
    both = {"oslo": frozenset({4}), "bern": frozenset({2})}
    assert fleet.alive() == both, "before the first look, the run folder is believed"
    cloud.faults["look"] = "vain"
    fleet.step()
    assert fleet.alive() == both, "a look that failed says nothing"
    cloud.advance(10.0)
    fleet.step()
    cloud.advance(SETTINGS.settle_wall_s)
    fleet.step()
    assert fleet.alive() == {"oslo": frozenset({4})}
    assert cloud.calls == ["look"] * 3


def test_what_belongs_to_no_site_of_the_run_is_deleted():
    cloud = FakeCloud()
    cloud.make("rome", 1)
    fleet = provisioner(cloud)
    for _ in range(2):
        fleet.step()
        cloud.advance(5.0)
    assert cloud.nodes == {}


def test_a_fault_is_one_line_until_it_is_mended():
    cloud = FakeCloud()
    fleet = provisioner(cloud)
    fleet.provision("oslo", 1)
    fleet.provision("bern", 1)
    cloud.faults["create"] = "refused"
    fleet.step()
    assert fleet.trouble == "refused (403)"
    cloud.faults["look"] = "bug"
    cloud.advance(5.0)
    fleet.step()
    assert fleet.trouble == "refused (403) (and 1 more)"
    cloud.advance(5.0)
    fleet.step()
    assert fleet.trouble is None
    assert sorted(node.site for node in cloud.nodes.values()) == ["bern", "oslo"]


@pytest.mark.parametrize("call", ["look", "create"])
def test_a_cloud_that_asks_to_be_left_alone_is_left_alone(call):
    cloud = FakeCloud(retry_after_s=50.0)
    fleet = provisioner(cloud)
    fleet.provision("oslo", 1)
    fleet.provision("bern", 1)
    cloud.faults[call] = "vain"
    assert fleet.step() == 50.0
    asked = len(cloud.calls)
    cloud.advance(49.0)
    assert fleet.step() == 1.0
    assert len(cloud.calls) == asked
    cloud.advance(1.0)
    fleet.step()
    assert len(cloud.calls) > asked


def test_looks_that_fail_come_ever_later():
    cloud = FakeCloud()
    fleet = provisioner(cloud)
    pauses = []
    for _ in range(10):
        cloud.faults["look"] = "vain"
        pauses.append(fleet.step())
        cloud.advance(pauses[-1])
    assert 1.0 <= pauses[0] <= 2.0
    assert 60.0 <= pauses[-1] <= 120.0


def test_a_bug_in_the_environment_is_trouble_and_no_dead_thread():
    cloud = FakeCloud()

    def broken(_site, _session):
        raise CloudError("no keys yet")

    fleet = RemoteProvisioner(cloud, ["oslo"], [], SETTINGS, broken, monotonic=cloud.time)
    fleet.provision("oslo", 1)
    fleet.step()
    assert fleet.trouble == "no keys yet"
