"""What `uncurtail deploy render` prints, by kubectl, on the cluster of the tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import uncurtail
from tests.binaries import find
from tests.cluster.clients import Kubectl
from tests.cluster.controllers.pods import is_up
from tests.cluster.controllers.tokens import AccountTokens
from tests.cluster.objects import dig
from tests.deploy.test_render import CASES, HERE, THREE
from uncurtail import provisioning
from uncurtail.config import load
from uncurtail.core.events import RoundCommitted, SiteProvisioned
from uncurtail.deploy.render import Request, render
from uncurtail.deploy.text import as_yaml
from uncurtail.operator.crd import crds
from uncurtail.runfolder import RunFolder
from uncurtail.verify import verify

# A run of one site, whose grid is never asked, in two minutes.
TINY = """\
name = "tiny"
[clock]
start = "2026-07-24T18:00:00+00:00"
speed = 30.0
[run]
duration_s = 3600
[policy]
kind = "always"
[gate]
address = "uncurtail-tiny-gate.default.svc:8443"
[fleet]
kind = "kubernetes"
[fleet.remote]
poll_wall_s = 1.0
[sites.duck]
preset = "duck"
provision_s = 0
kubernetes = { image = "uncurtail" }
[rounds]
length_s = 450.0
evaluate_every = 0
[data]
source = "grammar"
documents = 60
val_share = 0.2
[model]
depth = 1
vocab_size = 300
sequence_length = 32
[train]
budget_tokens = 10_000_000
batch_sequences = 2
[store]
min_free_bytes = 1000
"""
START_S = 120
COORDINATOR = "uncurtail-tiny-0"
REGIONS = ("caiso-north", "spp-tx", "nem-sa")


@pytest.fixture
def ready(kubectl, tmp_path):
    """kubectl, where the operator's kinds are known."""
    path = tmp_path / "crds.yaml"
    path.write_text(as_yaml(crds()), encoding="utf-8")
    kubectl("apply", "--server-side", "-f", str(path))
    return kubectl


@pytest.mark.parametrize("name", CASES)
def test_every_document_is_taken_and_applying_it_again_changes_nothing(ready, tmp_path, name):
    path = tmp_path / "run.yaml"
    request = CASES[name]
    path.write_text(render(request).text, encoding="utf-8")
    if request.namespace != "default":
        assert "created" in ready("apply", "-f", str(path))
    told = ready("apply", "-f", str(path)).strip().splitlines()
    told = ready("apply", "-f", str(path)).strip().splitlines()
    assert len(told) == len(render(request).documents)
    # A list of a kind of our own is sent again whole: its items have gained defaults.
    assert {line.split()[0] for line in told if not line.endswith("unchanged")} <= {
        "federation.flwr.exalsius.ai/sites"
    }
    name = render(request).documents[-1]["metadata"]["labels"]["app.kubernetes.io/instance"]
    ready("delete", "-f", str(path), "-l", f"app.kubernetes.io/instance={name}")
    kinds = {document["kind"] for document in render(request).documents}
    left = {line.split("/")[0] for line in told if "namespace" in line}
    assert left == ({"namespace"} if "Namespace" in kinds else set())


def log_of(kubelet, name):
    """What a pod has printed; read from the cluster's own thread, where no request can be made."""
    for worker in kubelet.workers.values():
        if worker.pod["metadata"]["name"] == name and worker.main[0].log.exists():
            return worker.main[0].log.read_text()
    return ""


def running(api):
    """The pods of the coordinator and of the site, by uid."""
    found = [pod["metadata"] for pod in api.list("pods") if is_up(pod)]
    ours = {meta["uid"]: meta["name"] for meta in found}
    coordinators = {uid for uid, name in ours.items() if name == COORDINATOR}
    return coordinators, ours.keys() - coordinators


@pytest.mark.stack
@pytest.mark.timeout(600)
def test_a_run_of_pods_alone_goes_on_in_another_pod_and_stays_when_it_is_over(kubelet, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    documents = render(Request(path)).documents
    # The image of a pod is the environment of the tests, wherever its package comes from.
    sources = {"name": "PYTHONPATH", "value": str(Path(uncurtail.__file__).parents[1])}
    documents[-1]["spec"]["template"]["spec"]["containers"][0]["env"].append(sources)
    manifest = tmp_path / "run.yaml"
    manifest.write_text(as_yaml(documents), encoding="utf-8")
    Kubectl.of(kubelet.cluster)("apply", "-f", str(manifest))
    wait_until = kubelet.cluster.wait_until

    def said():
        return log_of(kubelet, COORDINATOR)

    assert wait_until(lambda _: "duck -> version 1," in said(), START_S), said()
    (first,), (site,) = kubelet.cluster.call(running)
    run = said().split("Run folder: /runs/")[1].split()[0]
    Kubectl.of(kubelet.cluster)("delete", "pod", COORDINATOR, "--timeout=40s")
    assert wait_until(lambda api: site not in running(api)[1], 20), "it was drained with its run"
    assert wait_until(lambda api: running(api)[0] - {first}, 60)
    assert wait_until(lambda _: f"Run folder: /runs/{run}" in said(), START_S), said()
    assert wait_until(lambda _: f"{run} has ended. A new run needs" in said(), 300), said()
    (coordinator,) = kubelet.cluster.call(lambda api: api.list("pods"))
    (container,) = dig(coordinator, "status.containerStatuses")
    assert container["restartCount"] == 0
    folder = RunFolder(kubelet.cluster.folder / "claims/default/uncurtail-tiny/runs" / run)
    assert [check for check in verify(folder) if check.passed is False] == []
    sessions = [e.session for e in folder.read_events() if isinstance(e, SiteProvisioned)]
    assert sessions == [1, 2]
    assert sum(isinstance(e, RoundCommitted) for e in folder.read_events()) >= 2


def how_to():
    """The commands of the how-to, block by block, but for those that need docker, helm or a pod."""
    text = (HERE / "docs/kubernetes.md").read_text(encoding="utf-8")
    section = text.split("## A run in three regions, from nothing\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 9
    return [b for b in blocks if not re.search(r"docker|helm install| logs ", b)]


@pytest.fixture
def desk(cluster, hollow, tmp_path):
    """A shell in an empty folder, with the how-to's contexts, all of which lead to one cluster."""
    tokens = AccountTokens(cluster.service_account_token, cluster.ca)
    cluster.call(lambda _: cluster.parts.append(tokens))
    settings = yaml.safe_load(cluster.kubeconfig().read_text(encoding="utf-8"))
    (ground,) = settings["contexts"]
    settings["contexts"] = [{**ground, "name": name} for name in ("home", *REGIONS)]
    del settings["current-context"]
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(settings), encoding="utf-8")
    desk = tmp_path / "desk"
    desk.mkdir()
    shutil.copy(THREE, desk)
    commands = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{commands}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
        "PYTHONPATH": str(Path(uncurtail.__file__).parents[1]),
        "WATTTIME_USERNAME": "somebody",
        "WATTTIME_PASSWORD": "something",
    }

    def run(script):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=desk,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.skipif(find("helm") is None, reason="helm is not installed")
@pytest.mark.timeout(120)
def test_helm_installs_a_run_changes_it_and_takes_it_away(desk, cluster):
    text = (HERE / "docs/kubernetes.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```bash\n(helm install three-regions .*?)```", text, re.DOTALL)
    chart = "deploy/helm/uncurtail"
    command = command.strip().replace(chart, f"{HERE / chart} --kube-context home")
    desk(f"{command} --create-namespace")

    def coordinators(api):
        return [p["metadata"]["uid"] for p in api.list("pods", "uncurtail") if is_up(p)]

    assert cluster.wait_until(coordinators)
    (first,) = cluster.call(coordinators)
    (told,) = cluster.call(lambda api: api.list("configmaps", "uncurtail"))
    assert told["data"]["experiment.toml"] == THREE.read_text(encoding="utf-8")

    desk(command.replace("install", "upgrade", 1) + " --set 'arguments={--set,seed=4}'")
    assert cluster.wait_until(lambda api: set(coordinators(api)) - {first}), "it goes on in another"
    desk("helm uninstall three-regions -n uncurtail --kube-context home --wait")
    left = ["statefulsets", "services", "configmaps", "roles", "rolebindings"]
    assert {
        kind for kind in left if cluster.call(lambda api, k=kind: api.list(k, "uncurtail"))
    } == set()


@pytest.mark.timeout(180)
def test_the_how_to_works_as_it_is_written(desk, cluster, tmp_path, monkeypatch):
    regions, kubeconfig, home, service, stop, end = how_to()
    desk(regions + kubeconfig + home.replace("rm clusters ca.crt", "mv clusters .."))
    variables = home.splitlines()[0]
    assert "LoadBalancer" in desk(variables + "\n" + service)

    def coordinator_is_up(api):
        return [p["metadata"]["name"] for p in api.list("pods", "uncurtail") if is_up(p)]

    assert cluster.wait_until(coordinator_is_up)
    assert cluster.call(coordinator_is_up) == ["uncurtail-three-regions-0"]
    # What the coordinator is given suffices for what it does, and for no more.
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "clusters"))
    settings = load(THREE)
    clouds = provisioning.clouds(settings, "three-regions-1", {})
    assert [sites for _, sites in clouds] == [[region] for region in REGIONS]
    for cloud, (site,) in clouds:
        cloud.create(site, 1, {"UNCURTAIL_SITE_TOKEN": "told"})
        (node,) = cloud.look()
        assert (node.site, node.session) == (site, 1)
        cloud.delete(node)
    spied = "! kubectl --kubeconfig=../clusters --context=spp-tx -n uncurtail get secrets 2>&1"
    assert "Forbidden" in desk(spied)
    desk(variables + "\n" + stop)
    assert cluster.wait_until(coordinator_is_up)
    # All contexts lead to one cluster here: what one region takes away, the next finds gone.
    desk(variables + "\n" + end.replace("delete $all", "delete --ignore-not-found $all"))
    made = [
        "statefulsets", "pods", "persistentvolumeclaims", "configmaps", "secrets", "roles",
        "rolebindings",
    ]  # fmt: skip
    left = cluster.call(lambda api: {kind: api.list(kind, "uncurtail") for kind in made})
    assert left == {kind: [] for kind in made}
