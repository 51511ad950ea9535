"""From settings to a fleet, and `uncurtail fleet release`: what a killed run left is deleted."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.virtual import experiment
from uncurtail import fleetcommands, provisioning
from uncurtail.adapters import children, exalsius
from uncurtail.config import ConfigError, dump
from uncurtail.core.events import SitePhase, SiteProvisioned
from uncurtail.errors import UserError
from uncurtail.provisioning import MixedProvisioner
from uncurtail.runfolder import Journal, RunFolder

MACHINE = {"node_id": "rack-1", "cluster_id": "north"}
REMOTE = {"poll_wall_s": 0.01, "settle_wall_s": 0.05, "release_wall_s": 20.0}


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(exalsius.TOKEN, "a-secret-token")


@dataclass
class Noted:
    living: dict[str, frozenset[int]] = field(default_factory=dict)
    trouble: str | None = None
    calls: list[tuple[str, str, int]] = field(default_factory=list)

    def provision(self, site, session):
        self.calls.append(("provision", site, session))

    def release(self, site, session):
        self.calls.append(("release", site, session))

    def alive(self):
        return self.living


def test_each_sites_calls_go_to_its_own_provisioner():
    here, there = Noted({"a": frozenset({1})}), Noted({"c": frozenset({2}), "x": frozenset({9})})
    fleet = MixedProvisioner({"a": here, "b": here, "c": there})
    fleet.provision("b", 4)
    fleet.release("c", 2)
    assert (here.calls, there.calls) == ([("provision", "b", 4)], [("release", "c", 2)])
    assert fleet.alive() == {"a": frozenset({1}), "c": frozenset({2}), "x": frozenset({9})}
    assert fleet.trouble is None
    here.trouble, there.trouble = "one", "two"
    assert fleet.trouble == "one; two"


def elsewhere(**exalsius_section):
    site = {"preset": "duck", "kind": "exalsius", "exalsius": MACHINE}
    fleet = {"remote": REMOTE, "exalsius": exalsius_section}
    return experiment(sites={"duck": site}, fleet=fleet)


def test_a_missing_token_is_one_line_with_its_remedy(monkeypatch):
    pytest.importorskip("exalsius_api_client", reason="the extra `exalsius` is not installed")
    provisioning.check(elsewhere())
    monkeypatch.delenv(exalsius.TOKEN)
    with pytest.raises(ConfigError, match="needs UNCURTAIL_EXALSIUS_TOKEN, or UNCURTAIL_EXALSIUS"):
        provisioning.check(elsewhere())


def test_cpus_that_are_not_there_are_one_line_with_their_remedy():
    config = experiment(sites={"duck": {"preset": "duck", "cpus": "9999"}})
    with pytest.raises(ConfigError, match=r"sites\.duck\.cpus names CPU 9999, which this machine"):
        provisioning.check(config)
    provisioning.check(experiment())


def test_only_machines_elsewhere_make_the_end_of_a_run_wait():
    assert provisioning.release_wall_s(experiment()) == 0.0
    assert provisioning.release_wall_s(elsewhere()) == 20.0


@pytest.fixture
def left(tmp_path):
    """A run that was killed while its site was up."""

    def make(config) -> RunFolder:
        folder = RunFolder(tmp_path / "virtual-20260724-060000")
        folder.create()
        folder.resolved.write_text(dump(config), encoding="utf-8")
        journal = Journal(folder)
        at: dict[str, Any] = {"t": 1.0, "wall_s": 1.0, "site": "duck", "session": 3}
        journal.events([SiteProvisioned(**at), SitePhase(**at, phase="idle", power_w=1.0)])
        journal.close()
        return folder

    return make


@pytest.fixture
def server():
    pytest.importorskip("exalsius_api_client", reason="the extra `exalsius` is not installed")
    from tests.exalsiusserver import serving

    with serving() as one:
        one.pool("rack-1")
        yield one


def test_what_a_killed_run_left_is_deleted(server, left):
    server.nodes["rack-1"].status, server.nodes["rack-1"].cluster = "DEPLOYED", "north"
    folder = left(elsewhere(url=server.url))
    assert fleetcommands.release(folder.path) == ("No machine of virtual-20260724-060000 is left.")
    assert server.members() == []
    assert server.asked("DELETE /cluster/north/nodes/rack-1") >= 1


def test_machines_that_cannot_be_deleted_are_named_with_the_reason(server, left, monkeypatch):
    server.nodes["rack-1"].status, server.nodes["rack-1"].cluster = "DEPLOYED", "north"
    monkeypatch.setitem(REMOTE, "release_wall_s", 0.5)
    monkeypatch.setenv(exalsius.TOKEN, "another")
    with pytest.raises(UserError, match=r"machines are left, or may be, of duck\.3: .*\(401\)"):
        fleetcommands.release(left(elsewhere(url=server.url)).path)
    assert server.members() == ["rack-1"]


def test_a_run_that_goes_on_keeps_its_machines(left):
    folder = left(elsewhere())
    folder.private.mkdir(exist_ok=True)
    body = {"pid": os.getpid(), "started": children.started(os.getpid())}
    (folder.private / "supervisor.json").write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(UserError, match="is going on: stop it first"):
        fleetcommands.release(folder.path)


def test_a_run_of_local_processes_has_nothing_elsewhere(left, tmp_path):
    assert "has no machines elsewhere" in fleetcommands.release(left(experiment()).path)
    with pytest.raises(ConfigError, match="is no run folder"):
        fleetcommands.release(tmp_path / "nowhere")
