"""A whole run on machines elsewhere whose cloud fails at random: all work counts, none is left.

The real loop and the real remote provisioner, in virtual time; the cloud is in memory.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.fakecloud import FAULTS, SETTINGS, FakeCloud
from tests.virtual import START, Virtual
from uncurtail.adapters.inprocess import SimulatedSites
from uncurtail.adapters.remote import RemoteProvisioner
from uncurtail.core import fleet
from uncurtail.core.events import RoundCommitted, SiteProvisioned, SiteReleased, Trouble, unix
from uncurtail.core.nodes import NodeState
from uncurtail.verify import verify

BEGAN = unix(START)
BOOT_S = 120.0


@dataclass
class Machines(FakeCloud):
    """A cloud whose ready nodes run a simulated site, and whose deleted nodes do not."""

    sites: SimulatedSites = field(init=False)
    chance: random.Random = field(default_factory=random.Random)
    faulty: float = 0.0  # share of calls that fail
    born: dict[str, float] = field(default_factory=dict)

    def follow(self):
        """What happened since the last tick."""
        t = self.sites.now
        self.advance(t - self.now)
        for node in [*self.nodes.values()]:
            at = self.born.setdefault(node.id, t)
            if node.state is NodeState.STARTING and t >= at + BOOT_S:
                self.turn(node.id, NodeState.READY)
                self.sites.provision(*node.key)
        there = {node.key for node in self.nodes.values()}
        for site, sessions in self.sites.alive().items():
            for session in sessions:
                if (site, session) not in there:
                    self.sites.release(site, session)

    def look(self):
        self._maybe("look")
        return super().look()

    def create(self, site, session, environment):
        self._maybe("create")
        self.late_s = self.chance.uniform(1.0, 55.0)
        super().create(site, session, environment)

    def delete(self, node):
        self._maybe("delete")
        super().delete(node)

    def _maybe(self, call):
        if self.chance.random() < self.faulty:
            self.faults[call] = self.chance.choice(FAULTS[call])


class Stepped(RemoteProvisioner):
    """Its thread's work is done when the loop looks: nothing depends on its pace."""

    due = 0.0

    def alive(self):
        cloud = self._cloud
        assert isinstance(cloud, Machines)
        cloud.follow()
        if cloud.now >= self.due:
            self.due = cloud.now + self.step()
        return super().alive()


@dataclass
class Elsewhere(Virtual):
    """A virtual run whose sites are machines of a cloud."""

    seed: int = 0
    cloud: Machines = field(init=False)

    def __post_init__(self):
        self.cloud = Machines(now=BEGAN, chance=random.Random(self.seed))
        super().__post_init__()

    def _provisioner(self, before):
        self.cloud.sites = self.sites
        return Stepped(
            self.cloud,
            list(self.settings.sites),
            fleet.living(before.states),
            SETTINGS,
            lambda *_: {},
            seed=self.seed,
            monotonic=self.cloud.time,
        )


def strike(run: Virtual) -> None:
    """A machine is taken away."""
    assert isinstance(run, Elsewhere)
    if run.cloud.nodes:
        del run.cloud.nodes[run.cloud.chance.choice(sorted(run.cloud.nodes))]


def conclude(run: Elsewhere):
    run.finish()
    assert run.cloud.nodes == {}
    assert run.cloud.coming == []
    assert run.cloud.most_of_a_site == 1
    events = run.folder.read_events()
    started = Counter((e.site, e.session) for e in events if isinstance(e, SiteProvisioned))
    ended = Counter((e.site, e.session) for e in events if isinstance(e, SiteReleased))
    assert started == ended
    assert set(started.values()) == {1}
    assert any(isinstance(event, RoundCommitted) for event in events)
    assert [check for check in verify(run.folder) if check.passed is False] == []
    return events


def test_a_run_ends_when_its_machines_are_seen_to_be_gone(tmp_path):
    run = Elsewhere(tmp_path)
    events = conclude(run)
    run.close()
    assert not [event for event in events if isinstance(event, Trouble)]
    assert run.cloud.made == sum(isinstance(event, SiteProvisioned) for event in events)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_cloud_does_all_work_counts_and_nothing_is_left(tmp_path, seed):
    run = Elsewhere(tmp_path, seed=seed)
    run.cloud.faulty = 0.3
    chance = random.Random(1000 + seed)
    at = sorted(BEGAN + chance.uniform(0.0, 12 * 3600.0) for _ in range(30))
    faults = [(t, Virtual.restart if n % 3 == 0 else strike) for n, t in enumerate(at)]
    run.until(BEGAN + 12 * 3600.0, faults)
    run.cloud.faulty = 0.1
    events = conclude(run)
    run.close()
    assert [event for event in events if isinstance(event, Trouble) and event.source == "fleet"]
