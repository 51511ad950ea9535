"""Sites in two clusters, each with an API server: one that is away holds up no other."""

import pytest
import yaml

from tests.cluster.clients import Rest
from tests.cluster.cluster import Cluster
from tests.cluster.controllers import all_controllers
from tests.cluster.controllers.nodes import add, node
from tests.cluster.hollow import HollowNodes
from tests.cluster.objects import Json
from tests.cluster.operators import make_namespace
from tests.cluster.test_kubernetes_cloud import IMAGE, SETTINGS, alive, bind_runner, told, until
from tests.virtual import experiment
from uncurtail import provisioning
from uncurtail.adapters.remote import RemoteProvisioner

REGIONS = ("north", "south")


@pytest.fixture
def regions(tmp_path, monkeypatch):
    """Two clusters, of which one kubeconfig knows both; a run may do in each what its role says."""
    made: dict[str, Cluster] = {}
    merged: Json = {"apiVersion": "v1", "kind": "Config"}
    parts = {"clusters": "cluster", "users": "user", "contexts": "context"}
    for name in REGIONS:
        (tmp_path / name).mkdir()
        cluster = made[name] = Cluster(tmp_path / name)
        cluster.parts[:] = [*all_controllers(), HollowNodes()]
        cluster.start()
        cluster.call(lambda api: add(api, node("alpha")))
        with Rest.of(cluster) as admin:
            make_namespace(admin, "ml")
            bind_runner(admin)
        token = cluster.service_account_token("ml", "runner")
        own = yaml.safe_load(cluster.kubeconfig(token, "runner").read_text())
        for part, key in parts.items():
            merged.setdefault(part, []).append({"name": name, key: own[part][0][key]})
        merged["contexts"][-1]["context"] |= {"cluster": name, "user": name}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(merged))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield made
    for cluster in made.values():
        cluster.stop()


def pods(cluster):
    return [pod["metadata"]["name"] for pod in cluster.call(lambda api: api.list("pods", "ml"))]


@pytest.mark.timeout(120)
def test_each_region_has_its_own_pods_and_one_that_is_away_holds_up_no_other(regions):
    sites = {
        name: {"preset": "duck", "kind": "kubernetes", "kubernetes": {**IMAGE, "context": name}}
        for name in REGIONS
    }
    config = experiment(sites=sites, gate={"address": "127.0.0.1:4443"})
    provisioning.check(config)
    fleets = {
        site: RemoteProvisioner(cloud, [site], [], SETTINGS, lambda _, n: told(n))
        for cloud, (site,) in provisioning.clouds(config, "run-1", {})
    }
    for site, fleet in fleets.items():
        fleet.provision(site, 1)
        until(lambda s=site: alive(fleets[s]) == {s: frozenset({1})})
    for name, cluster in regions.items():
        (pod,) = pods(cluster)
        assert pod.endswith(f"-{name}-1"), "each in its own"

    north, south = regions["north"], regions["south"]
    south.run(south.server.stop())
    for site, fleet in fleets.items():
        fleet.release(site, 1)
    until(lambda: alive(fleets["north"]) == {})
    until(lambda: fleets["south"].step() or fleets["south"].trouble)
    assert fleets["north"].trouble is None
    assert pods(north) == []
    assert alive(fleets["south"]) == {"south": frozenset({1})}, "it is not known to be gone"
    south.restart_server()
    until(lambda: alive(fleets["south"]) == {})
    assert pods(south) == []
    assert fleets["south"].trouble is None
