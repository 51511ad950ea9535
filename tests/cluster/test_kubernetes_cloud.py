"""Sites as pods: of a Federation's pool, which the operator runs, and of their own."""

import base64
import json
import time
from pathlib import Path

import pytest
import yaml

from tests.cluster.clients import MERGE
from tests.cluster.faults import BROKEN, LoseAnswer, Outrun
from tests.cluster.operators import (
    FEDERATIONS,
    POOLS,
    START_S,
    Operator,
    federation,
    holds,
    install,
    supernodes,
)
from tests.federation.federations import children, manifest, pool
from tests.virtual import experiment
from uncurtail import fleetcommands, provisioning
from uncurtail.adapters.remote import CloudError, RemoteProvisioner
from uncurtail.config import ConfigError, dump
from uncurtail.core.nodes import Node, NodeState, RemoteSection
from uncurtail.doctor import examine
from uncurtail.errors import UserError
from uncurtail.operator.observed import Ref
from uncurtail.runfolder import RunFolder

pytestmark = pytest.mark.timeout(180)

ROLE = Path(__file__).parents[2] / "deploy/run-role.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/ml"
PODS = "/api/v1/namespaces/ml/pods"
SECRETS = "/api/v1/namespaces/ml/secrets"
SETTINGS = RemoteSection(poll_wall_s=0.2, settle_wall_s=1.0, max_retry_wall_s=1.0)
POOL = {"federation": "fed", "pool": "gpu", "namespace": "ml"}
IMAGE = {"image": "uncurtail:1", "gpus": 2, "namespace": "ml"}


def bind_runner(admin):
    """Let the service account `runner` do what a run may, by the role that we ship, and no more."""
    admin.done(admin.post(f"{RBAC}/roles", yaml.safe_load(ROLE.read_text())))
    group = "rbac.authorization.k8s.io"
    bound = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "runner"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "uncurtail-run"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "ml", "name": "runner"}],
    }
    admin.done(admin.post(f"{RBAC}/rolebindings", bound))


@pytest.fixture
def runner(cluster, hollow, admin, monkeypatch):
    install(admin)
    bind_runner(admin)
    path = cluster.kubeconfig(cluster.service_account_token("ml", "runner"), "runner")
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.fixture
def operator(cluster, runner, tmp_path):
    made = Operator(cluster, tmp_path, "operator")
    yield made
    made.stop()


def config(machine, **fleet):
    site = {"preset": "duck", "kind": "kubernetes", "kubernetes": machine}
    return experiment(sites={"duck": site}, fleet=fleet, gate={"address": "127.0.0.1:4443"})


def cloud(machine, run="run-1"):
    ((one, _),) = provisioning.clouds(config(machine), run, {})
    return one


def told(session):
    return {"UNCURTAIL_SESSION": str(session), "UNCURTAIL_SITE_TOKEN": "secret"}


def secrets(admin):
    found = [s for s in admin.list(SECRETS) if s["type"] == "Opaque"]
    decoded = {k: base64.b64decode(v).decode() for s in found for k, v in s["data"].items()}
    return [s["metadata"]["name"] for s in found], decoded


def until(look, timeout_s=30.0, why=None):
    give_up = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < give_up, why() if why else "it never came"
        time.sleep(0.1)
    return found


def alive(fleet):
    """What exists, after a look and the moves that follow; in our own thread."""
    fleet.step()
    return fleet.alive()


def test_a_pools_one_replica_is_the_session_and_goes_without_waiting(cluster, admin, operator):
    admin.done(admin.post(FEDERATIONS, federation(pool(replicas=0))))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    fleet = RemoteProvisioner(cloud(POOL), ["duck"], [], SETTINGS, lambda _, n: told(n))
    for session in (1, 2):
        fleet.provision("duck", session)
        until(lambda s=session: alive(fleet) == {"duck": frozenset({s})})
        assert cluster.wait_until(lambda api: supernodes(api) == ["fed-supernode-gpu-0"])
        assert secrets(admin) == (["fed-supernode-gpu-session"], told(session))
        fleet.release("duck", session)
        # its drain has 60 s; the run has drained it already, and says so
        until(lambda: alive(fleet) == {}, 20.0, why=operator.said)
        assert supernodes(cluster.api) == []
        assert secrets(admin) == ([], {}), "no token is left lying about"
    assert fleet.trouble is None


def test_a_pool_that_somebody_else_uses_is_left_alone(cluster, admin, operator):
    admin.done(admin.post(FEDERATIONS, federation(pool(replicas=1))))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    mine = cloud(POOL)
    assert mine.look() == []
    with pytest.raises(CloudError, match="scaled up, and not by this run: scale it to 0"):
        mine.create("duck", 1, told(1))
    admin.done(admin.patch(f"{POOLS}/fed-supernode-gpu/scale", {"spec": {"replicas": 0}}, MERGE))
    notes = {"metadata": {"annotations": {"flwr.exalsius.ai/drained": "true"}}}
    admin.done(admin.patch(f"{PODS}/fed-supernode-gpu-0", notes, MERGE))
    assert cluster.wait_until(lambda api: supernodes(api) == [])
    cluster.faults.plan(Outrun(), verbs=frozenset({"patch"}), plural="supernodepools")
    mine.create("duck", 1, told(1))
    other = cloud(POOL, run="run-2")
    assert other.look() == []
    with pytest.raises(CloudError, match="not by this run"):
        other.create("duck", 1, told(1))
    other.delete(Node("duck", 1, "x", NodeState.READY))
    assert [node.session for node in mine.look()] == [1]


def test_a_pod_that_was_replaced_is_not_its_session_any_more(cluster, admin, operator):
    admin.done(admin.post(FEDERATIONS, federation(pool(replicas=0))))
    assert cluster.wait_until(holds("Ready"), START_S), operator.said()
    mine = cloud(POOL)
    mine.create("duck", 7, told(7))
    assert [n.session for n in mine.look()] == [7]
    (node,) = until(lambda: [n for n in mine.look() if n.state is NodeState.READY])
    admin.done(admin.delete(f"{PODS}/fed-supernode-gpu-0"))
    (node,) = until(lambda: [n for n in mine.look() if n.state is NodeState.FAILED])
    assert "its pod" in node.why
    mine.delete(node)
    until(lambda: mine.look() == [], why=lambda: (mine.look(), operator.said()))


def test_without_a_pool_the_remedy_is_named(runner):
    with pytest.raises(
        CloudError, match="no SuperNodePool fed-supernode-gpu in namespace ml: apply"
    ):
        cloud(POOL).create("duck", 1, told(1))
    assert cloud(POOL).look() == []


@pytest.mark.usefixtures("runner")
def test_a_pod_of_an_image_needs_no_operator(cluster, admin):
    mine = cloud({**IMAGE, "gpus": 0})
    mine.create("duck", 1, told(1))
    mine.create("duck", 1, told(1))  # an answer was lost, and it is asked for again
    (node,) = until(lambda: [n for n in mine.look() if n.state is NodeState.READY])
    (pod,) = admin.list(PODS)
    assert pod["spec"]["restartPolicy"] == "Never"
    assert secrets(admin) == ([node.id], told(1))
    assert cloud(IMAGE, run="run-2").look() == []
    mine.delete(node)
    until(lambda: mine.look() == [])
    assert cluster.wait_until(lambda api: not [s for s in api.list("secrets") if "data" in s])
    mine.delete(node)


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("asked", ["baseline", "restricted"])
def test_a_pod_of_an_image_may_do_no_more_than_a_pool_of_a_federation(admin, asked):
    cloud({**IMAGE, "pod_security": asked}).create("duck", 1, told(1))
    (pod,) = admin.list(PODS)
    (site,) = pod["spec"]["containers"]
    pool = children(manifest(podSecurity=asked))[Ref("StatefulSet", "fed-supernode-gpu")]
    theirs = pool["spec"]["template"]["spec"]
    assert pod["spec"]["securityContext"] == theirs["securityContext"]
    assert site["securityContext"] == theirs["containers"][0]["securityContext"]
    assert site["securityContext"]["allowPrivilegeEscalation"] is False
    home = {variable["value"] for variable in site.get("env") or [] if variable["name"] == "HOME"}
    paths = {mount["mountPath"] for mount in site.get("volumeMounts") or []}
    assert home == paths == ({"/tmp"} if asked == "restricted" else set())


@pytest.mark.usefixtures("runner")
def test_a_pod_that_finds_no_gpus_says_so():
    mine = cloud(IMAGE)
    mine.create("duck", 1, told(1))
    (node,) = until(lambda: [n for n in mine.look() if n.why])
    assert node.state is NodeState.STARTING
    assert node.why.startswith("Unschedulable")


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("lost", ["pods", "secrets"])
def test_a_lost_answer_makes_no_second_pod(cluster, admin, lost):
    cluster.faults.plan(LoseAnswer(), plural=lost)
    place = cloud({"image": "uncurtail:1", "namespace": "ml"})
    fleet = RemoteProvisioner(place, ["duck"], [], SETTINGS, lambda _, n: told(n))
    fleet.provision("duck", 1)
    until(lambda: alive(fleet) and secrets(admin)[0])
    until(lambda: alive(fleet) and fleet.trouble is None, why=lambda: fleet.trouble)
    assert len(admin.list(PODS)) == 1
    cluster.faults.plan(BROKEN, plural="pods", verbs=frozenset({"delete"}), times=2)
    fleet.release("duck", 1)
    until(lambda: alive(fleet) == {}, why=lambda: fleet.trouble)
    assert admin.list(PODS) == []


def test_what_is_not_allowed_names_where_the_rights_are_listed(cluster, runner, monkeypatch):
    path = cluster.kubeconfig(cluster.service_account_token("ml", "nobody"), "nobody")
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(CloudError, match=r"\(403\): docs/kubernetes.md lists") as refused:
        cloud(IMAGE).look()
    assert not refused.value.unsure


def test_settings_that_cannot_work_are_one_line_with_their_remedy(cluster, runner, monkeypatch):
    with pytest.raises(ConfigError, match="needs federation and pool"):
        config({})
    with pytest.raises(ConfigError, match="name federation and pool, or image, not both"):
        config({**POOL, **IMAGE})
    with pytest.raises(UserError, match=r"Context 'elsewhere' not found.*get-contexts"):
        provisioning.check(config({**POOL, "context": "elsewhere"}))
    provisioning.check(config({**POOL, "context": "ground"}))
    bare = config(POOL).model_copy(update={"gate": experiment().gate})
    with pytest.raises(ConfigError, match=r'"kubernetes" needs gate\.address'):
        provisioning.check(bare)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(UserError, match="name a kubeconfig in KUBECONFIG"):
        provisioning.check(config(POOL))


def test_each_cluster_has_a_provisioner_of_its_own(runner):
    sites = {
        name: {"preset": "duck", "kind": "kubernetes", "kubernetes": {**IMAGE, **more}}
        for name, more in (("a", {}), ("b", {"context": "ground"}), ("c", {"context": "ground"}))
    }
    config_ = experiment(sites=sites, gate={"address": "127.0.0.1:4443"})
    clouds = provisioning.clouds(config_, "run", {})
    found = {each.name: names for each, names in clouds}
    assert found == {"kubernetes": ["a"], "kubernetes ground": ["b", "c"]}


@pytest.mark.usefixtures("runner")
def test_what_a_killed_run_left_is_deleted(cluster, admin, tmp_path):
    machine = {"image": "uncurtail:1", "namespace": "ml"}
    folder = RunFolder(tmp_path / "virtual-20260724-060000")
    folder.create()
    remote = {"poll_wall_s": 0.1, "settle_wall_s": 0.1, "release_wall_s": 20.0}
    folder.resolved.write_text(dump(config(machine, remote=remote)), encoding="utf-8")
    cloud(machine, folder.run_id).create("duck", 3, told(3))
    assert len(admin.list(PODS)) == 1
    said = fleetcommands.release(folder.path)
    assert said == "No machine of virtual-20260724-060000 is left."
    assert admin.list(PODS) == []


@pytest.mark.usefixtures("runner")
def test_doctor_says_which_cluster_answers(cluster):
    _, text = examine(as_json=True, online=True, addresses={})
    (found,) = [f for f in json.loads(text)["findings"] if f["what"] == "fleet, kubernetes"]
    assert found["found"].startswith(f"context ground, {cluster.url}, v1.")
    assert found["remedy"] == ""
