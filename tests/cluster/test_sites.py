"""A real run whose three sites are pods: from nothing as windows open, drained as they close."""

import copy
from pathlib import Path

import pytest
import yaml

from tests.cluster.operators import FEDERATIONS, SETS, Operator, holds, install, supernodes
from tests.cluster.test_kubernetes_cloud import bind_runner
from tests.integration.stack import SmallRun, kill
from uncurtail.adapters.redis_server import free_port
from uncurtail.core.events import (
    CoordinatorStarted,
    RoundCommitted,
    SiteProvisioned,
    SiteReleased,
)
from uncurtail.verify import verify

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "deploy/sites.yaml"
SITES = ("north", "south", "west")
THIRD = """
[sites.west]
region = "west"
provision_s = 60
"""


def sites_federation():
    """The example that we ship, with three pools and no GPUs."""
    made = yaml.safe_load(EXAMPLE.read_text())
    made["metadata"]["namespace"] = "ml"
    (one,) = made["spec"]["supernodes"]["pools"]
    del one["gpu"]
    pools = []
    for name in SITES:
        pool = copy.deepcopy(one)
        pool["name"] = name
        (container,) = pool["podTemplate"]["spec"]["containers"]
        container["envFrom"][0]["secretRef"]["name"] = f"sites-supernode-{name}-session"
        pools.append(pool)
    made["spec"]["supernodes"]["pools"] = pools
    return made


@pytest.fixture
def operators(kubelet, pods, tmp_path):
    """Starts operators of the cluster whose pods are processes."""
    install(pods)
    started: list[Operator] = []

    def start() -> Operator:
        started.append(Operator(kubelet.cluster, tmp_path, f"operator-{len(started)}"))
        return started[-1]

    yield start
    for operator in started:
        operator.stop()


@pytest.fixture
def run(kubelet, pods, operators, tmp_path, monkeypatch):
    """A run of two rounds of windows, an hour of which passes in a minute."""
    bind_runner(pods)
    token = kubelet.cluster.service_account_token("ml", "runner")
    monkeypatch.setenv("KUBECONFIG", str(kubelet.cluster.kubeconfig(token, "runner")))
    windows = {
        "north": [(0, 75), (130, 200)],
        "south": [(5, 80), (135, 200)],
        "west": [(5, 70), (130, 200)],
    }
    # Between the windows is time for an answer that is lost on the way: it is read from the store
    # when its round ends, and only then is its site released.
    made = SmallRun(
        tmp_path / "run",
        minutes=205,
        windows=windows,
        speed=60.0,
        round_s=900.0,
        grace_wall_s=8.0,
        max_steps=100,
    )
    with (made.home / "small.toml").open("a") as file:
        file.write(THIRD)
    yield made
    made.clean_up()


def logs(kubelet):
    """The end of what each pod printed, for a test that fails."""
    folder = kubelet.cluster.folder / "pods"
    found = sorted(folder.rglob("supernode.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"-- {path}\n{path.read_text()[-1500:]}" for path in found[-4:])


def test_windows_open_and_close_over_pods_and_nothing_is_lost(kubelet, pods, operators, run):
    cluster = kubelet.cluster
    operator = operators()
    pods.done(pods.post(FEDERATIONS, sites_federation()))
    assert cluster.wait_until(holds("Ready", name="sites"), 120), operator.said()
    assert supernodes(cluster.api) == []

    settings = [
        f"gate.address={kubelet.network.gateway}:{free_port()}",
        f"gate.listen={kubelet.network.gateway}",
        "fleet.kind=kubernetes",
        "fleet.kubernetes.namespace=ml",
        "fleet.remote.poll_wall_s=1",
        *(
            f"sites.{name}.kubernetes.{k}={v}"
            for name in SITES
            for k, v in (("federation", "sites"), ("pool", name))
        ),
    ]
    run.start(*(part for setting in settings for part in ("--set", setting)))

    def merged(events, count):
        """Whether versions were made of the work of so many sites, together or in turn."""
        return len({s for e in events if isinstance(e, RoundCommitted) for s in e.sites}) >= count

    def trouble():
        return f"{run.output()[-2000:]}\n{operator.said()[-2000:]}\n{logs(kubelet)}"

    def until(found, timeout_s):
        try:
            run.until(found, timeout_s)
        except AssertionError as error:
            raise AssertionError(trouble()) from error

    until(lambda events: merged(events, 1), 180)
    operator.kill()
    kill(run.coordinator())
    operator = operators()
    until(lambda events: sum(isinstance(e, CoordinatorStarted) for e in events) >= 2, 60)

    # the windows close: drained, and scaled to none
    until(lambda events: {e.site for e in events if isinstance(e, SiteReleased)} == {*SITES}, 180)
    assert cluster.wait_until(lambda api: supernodes(api) == [], 60), trouble()
    # and open again
    until(lambda events: sum(isinstance(e, SiteProvisioned) for e in events) >= 6, 180)
    assert run.wait(400) == 0, trouble()

    events = run.events()
    assert merged(events, 3), trouble()
    assert [c for c in verify(run.folder) if c.passed is False] == []
    assert cluster.wait_until(lambda api: supernodes(api) == [], 60), trouble()
    replicas = {s["metadata"]["name"]: s["spec"]["replicas"] for s in pods.list(SETS)}
    assert replicas == {"sites-superlink": 1, **{f"sites-supernode-{n}": 0 for n in SITES}}
    secrets = pods.list("/api/v1/namespaces/ml/secrets")
    assert [s["metadata"]["name"] for s in secrets if s["type"] == "Opaque"] == []
