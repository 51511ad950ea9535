"""Static sites over a real state server: machines that follow what is written, and are heard of."""

import json
import os
from dataclasses import asdict

import pytest

from uncurtail.adapters import children
from uncurtail.adapters.redis import Keys, MachineState, SiteState, connect, reachable
from uncurtail.adapters.redis_server import plan_embedded
from uncurtail.adapters.remote import RemoteProvisioner
from uncurtail.adapters.static import SETTINGS, StaticSites
from uncurtail.core.orders import Heart, Wanted

RUN = "demo-1"
MARK = f"test-static-{os.getpid()}"


class World:
    """The provisioner with its own time, and machines that do what they are told."""

    def __init__(self, url: str) -> None:
        self.url, self.now = url, 1000.0
        self.online: frozenset[str] = frozenset()
        self.client = connect(url)
        self.machine = SiteState(url, RUN, "oslo")
        self.states: list[MachineState] = []
        self.start([])

    def start(self, living):
        """A coordinator."""
        self.states.append(MachineState(self.url, RUN, ["oslo", "bern"]))
        cloud = StaticSites(self.states[-1], ["oslo", "bern"], lambda: self.online)
        self.fleet = RemoteProvisioner(
            cloud, ["oslo", "bern"], living, SETTINGS, lambda *_: {}, monotonic=lambda: self.now
        )

    def look(self, times=1):
        for _ in range(times):
            self.now += SETTINGS.poll_wall_s
            self.fleet.step()

    def wanted(self, site="oslo"):
        raw = self.client.get(Keys(RUN).wanted(site))
        return None if raw is None else Wanted(**json.loads(raw))

    def beat(self, session):
        heart = Heart(session=session, stepping=False, round=0, steps=0, skew_s=0.0)
        assert self.machine.exchange(asdict(heart), []) is not None

    def fall_silent(self):
        self.client.delete(Keys(RUN).heart("oslo"))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    plan = plan_embedded()
    server = plan.start(MARK, folder, folder / "redis.log")
    try:
        while reachable(plan.url) is not None:
            assert server.poll() is None
        yield plan.url
    finally:
        server.kill()
        server.wait()
        assert children.kill_marked(MARK) == 0


@pytest.fixture
def world(url):
    one = World(url)
    one.client.flushall()
    yield one
    for client in (one.client, one.machine._client, *(state._client for state in one.states)):
        client.close()


def test_a_machine_is_told_what_is_wanted_and_counts_while_it_is_heard_of(world):
    world.look()
    assert world.wanted() is None, "nothing was said: a machine goes on with what it does"
    world.fleet.provision("oslo", 1)
    assert world.fleet.alive() == {"oslo": frozenset({1})}
    world.look()
    assert world.wanted() == Wanted(1, up=True)
    world.look(50)
    assert world.fleet.alive() == {"oslo": frozenset({1})}, "it comes when it comes"
    world.beat(1)
    world.look()
    world.fall_silent()
    world.look()
    assert world.fleet.alive() == {}


def test_one_that_never_came_is_gone_as_soon_as_it_is_released(world):
    world.fleet.provision("oslo", 1)
    world.look(3)
    world.fleet.release("oslo", 1)
    world.look()
    assert world.fleet.alive() == {}


def test_a_machine_is_told_to_end_and_is_there_until_it_is_not_heard_of(world):
    world.fleet.provision("oslo", 1)
    world.look()
    world.beat(1)
    world.look()
    world.fleet.release("oslo", 1)
    world.look()
    assert world.wanted() == Wanted(1, up=False)
    assert world.fleet.alive() == {"oslo": frozenset({1})}
    world.fall_silent()
    world.online = frozenset({"oslo.1", "oslo.x", "rome.3"})
    world.look()
    assert world.fleet.alive() == {"oslo": frozenset({1})}, "Flower still knows it"
    world.online = frozenset()
    world.look()
    assert world.fleet.alive() == {}


def test_a_session_of_an_earlier_coordinator_goes_on(world):
    world.beat(4)
    world.start([("oslo", 4)])
    world.look()
    assert world.fleet.alive() == {"oslo": frozenset({4})}
    world.look()
    assert world.wanted() == Wanted(4, up=True)


def test_what_is_wanted_is_written_again_after_a_flush(world):
    world.fleet.provision("oslo", 1)
    world.look()
    world.beat(1)
    world.look()
    world.client.flushall()
    world.beat(1)
    world.look()
    assert world.wanted() == Wanted(1, up=True)


def test_a_stray_of_an_older_session_does_not_undo_what_is_wanted(world):
    world.fleet.provision("oslo", 5)
    world.look()
    world.beat(3)
    world.fleet.release("oslo", 3)
    world.look(2)
    assert world.wanted() == Wanted(5, up=True)


def test_a_state_server_that_is_away_ends_nobody(world):
    world.fleet.provision("oslo", 1)
    world.look()
    world.beat(1)
    world.look()

    class Away:
        def exchange(self, wanted):
            return None

    cloud = StaticSites(Away(), ["oslo"], frozenset)
    world.fleet._cloud = cloud
    world.look(5)
    assert world.fleet.alive() == {"oslo": frozenset({1})}
    assert world.fleet.trouble == "static sites cannot be told: the state server is out of reach"
