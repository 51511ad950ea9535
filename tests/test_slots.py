"""Where sites run: each has a place of its own, or one line says what to change."""

import pytest

from tests.virtual import experiment
from uncurtail.config import ConfigError, parse
from uncurtail.core import slots

BASE = experiment(train={"batch_sequences": 4}).model_dump(mode="json")


def fine(first, second=(), **fleet):
    """Two sites, a and b."""
    sites = {"a": {"preset": "duck", **first}, "b": {"preset": "duck", **dict(second)}}
    return parse({**BASE, "sites": sites, "fleet": fleet}, "x")


def problem(first, second=(), **fleet) -> str:
    with pytest.raises(ConfigError) as error:
        fine(first, second, **fleet)
    return str(error.value)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"cuda_devices": "0,1"}, {"cuda_devices": "1"},
         "sites.a and sites.b share GPU 1, and may run at once: give each its own cuda_devices"),
        ({"cuda_devices": "0,0"}, {}, "sites.a.cuda_devices names a GPU twice"),
        ({"cuda_devices": "0", "ranks": 2}, {}, "sites.a.ranks 2 are more than its GPUs"),
        ({"cpus": "0-3"}, {"cpus": "3,7"}, "sites.a and sites.b share CPU 3"),
        ({"cpus": "0-1", "threads": 3}, {}, "sites.a.threads 3 are more than its cpus '0-1'"),
        ({"cpus": "0-"}, {}, "'0-' is no list of CPUs"),
        ({"cpus": "3-1"}, {}, "'3-1' is no list of CPUs"),
        ({"kind": "exalsius"}, {}, "sites.a.exalsius needs node_id"),
        ({"kind": "exalsius", "exalsius": {"node_id": "n"}}, {}, "sites.a needs exalsius.cluster_"),
        ({"kind": "exalsius", "exalsius": {"node_id": "n", "offer_id": "o"}}, {},
         "name node_id or offer_id, not both"),
        ({"kind": "exalsius", "exalsius": {"node_id": "n", "cluster_id": "c"}},
         {"kind": "exalsius", "exalsius": {"node_id": "n", "cluster_id": "d"}},
         "sites.a and sites.b share node n"),
        ({"kind": "kubernets"}, {}, "sites.a.kind = 'kubernets'"),
    ],
)  # fmt: skip
def test_sites_that_cannot_run_side_by_side_are_refused(first, second, words):
    assert words in problem(first, second)


@pytest.mark.parametrize("url", ["http://api.example.org/v1", "https://me:word@h/v1", "api"])
def test_a_token_goes_nowhere_unsealed(url):
    assert "fleet.exalsius.url" in problem({}, exalsius={"url": url})


def test_gpus_of_machines_elsewhere_are_not_ours():
    config = fine({"cuda_devices": "0"}, {"cuda_devices": "0", "kind": "static"})
    assert slots.kinds(config.fleet, config.sites) == {"a": "processes", "b": "static"}


def test_a_site_runs_where_the_fleet_does_unless_it_says_otherwise():
    machine = {"exalsius": {"node_id": "n"}}
    config = fine(machine, {"kind": "static"}, kind="exalsius", exalsius={"cluster_id": "c"})
    assert slots.kinds(config.fleet, config.sites) == {"a": "exalsius", "b": "static"}


def test_a_list_of_cpus_is_read_as_people_write_it():
    assert slots.cpus("0-2, 8") == {0, 1, 2, 8}
    assert slots.gpus("0, GPU-ab12") == ["0", "GPU-ab12"]
