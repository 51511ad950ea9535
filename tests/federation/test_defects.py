"""Defects seen in another operator of the same resource: each one is impossible here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.federation.fakecluster import FakeCluster
from tests.federation.federations import VOLUMES, children, container, manifest, pool
from tests.federation.test_crd import admit
from uncurtail.operator.children import build_children
from uncurtail.operator.names import SPEC_HASH
from uncurtail.operator.observed import Ref
from uncurtail.operator.rules import problems, warnings
from uncurtail.operator.spec import Federation

NODES = Ref("StatefulSet", "fed-supernode-gpu")
LINK = Ref("StatefulSet", "fed-superlink")


def env_names(each):
    return [variable["name"] for variable in each["env"]]


def busy_federation(**gpu):
    return manifest(
        pool(env=[{"name": n, "value": "pool"} for n in "CZBA"], gpu=gpu, **VOLUMES["volumes"]),
        nodes={"env": [{"name": n, "value": "all"} for n in "XCY"]},
    )


def test_1_environment_and_mounts_keep_their_order():
    federation = busy_federation(mountAll=True, vendor="amd")
    supernode = container(children(federation)[NODES], "supernode")
    assert env_names(supernode) == ["ROCR_VISIBLE_DEVICES", "X", "C", "Y", "Z", "B", "A"]
    assert [v["value"] for v in supernode["env"][1:4]] == ["all", "pool", "all"]


def test_1_the_same_spec_gives_the_same_hash_in_every_process():
    program = (
        "import json, sys\n"
        "from uncurtail.operator.children import build_children\n"
        "from uncurtail.operator.spec import Federation\n"
        "print(json.dumps(build_children(Federation.of(json.load(sys.stdin)))))\n"
    )
    text = json.dumps(busy_federation(mountAll=True, vendor="amd"))
    source = str(Path(__file__).parents[2] / "src")
    seen = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, input=text, env=env, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_1_the_order_of_keys_in_a_file_changes_nothing():
    federation = busy_federation(enabled=True)
    turned = json.loads(json.dumps(federation), object_pairs_hook=lambda kv: dict(reversed(kv)))
    assert build_children(Federation.of(federation)) == build_children(Federation.of(turned))


@pytest.mark.parametrize("version", ["1.41.0", "1.30.0"])
def test_2_supernodes_dial_the_port_that_the_service_has(version):
    link = {"image": "x", "service": {"ports": {"grpc": 19092, "http": 18000}}}
    made = children(manifest(link=link, version=version))
    ports = made[Ref("Service", "fed-superlink")]["spec"]["ports"]
    assert ("fleet", 19092) in [(port["name"], port["port"]) for port in ports]
    assert "--superlink=fed-superlink:19092" in container(made[NODES], "supernode")["args"]
    names = {port["name"] for port in container(made[LINK], "superlink")["ports"]}
    assert {port["targetPort"] for port in ports} <= names


def test_3_a_switch_of_mode_never_leaves_two_kinds_of_supernodes():
    cluster = FakeCluster(nodes=3)
    cluster.settle(manifest())
    assert cluster.kinds_with_pods() == {"StatefulSet"}
    cluster.settle(manifest(mode="DaemonSet"))
    assert cluster.kinds_with_pods() == {"DaemonSet"}
    assert Ref("StatefulSet", "fed-supernode-gpu") not in cluster.objects
    assert cluster.most_kinds_at_once == 1


def test_4_a_changed_claim_is_made_anew_around_pods_that_stay():
    cluster = FakeCluster()
    cluster.settle(manifest())
    before = cluster.pod_names()
    cluster.settle(manifest(pool(**VOLUMES["claims"])))
    templates = cluster.objects[NODES]["spec"]["volumeClaimTemplates"]
    assert [t["metadata"]["name"] for t in templates] == ["scratch"]
    assert cluster.pod_names() == before
    assert cluster.ended == []
    assert cluster.condition("Ready") == "True"


def test_4_what_the_api_server_refuses_is_in_the_status():
    cluster = FakeCluster()
    cluster.settle(manifest())
    cluster.refuse = "no room"
    cluster.reconcile(manifest(pool(replicas=5)))
    assert cluster.condition("Degraded") == "True"
    assert "no room" in cluster.message("Degraded")
    cluster.refuse = None
    cluster.settle(manifest(pool(replicas=5)))
    assert cluster.condition("Degraded") == "False"


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"podTemplate": {"spec": {"nodeSelector": {"gpu": "yes"}}}},
        {"podTemplate": {"spec": {"containers": []}}},
        {"replicas": 0},
    ],
    ids=["without-images", "template-without-containers", "no-containers", "no-replicas"],
)
def test_5_what_a_quick_start_would_write_is_accepted(change):
    each = {key: value for key, value in pool(**change).items() if value is not None}
    federation = manifest(each)
    assert admit(federation) == []
    assert problems(Federation.of(federation)) == ()


def test_6_scaling_restarts_nothing():
    cluster = FakeCluster()
    each = pool(nodeConfig={"num-partitions": "{replicas}", "partition-id": "{index}"})
    cluster.settle(manifest(each))
    before = cluster.objects[NODES]["metadata"]["annotations"][SPEC_HASH]
    cluster.scale("fed-supernode-gpu", 5)
    cluster.settle(manifest(each))
    assert cluster.objects[NODES]["spec"]["replicas"] == 5
    cluster.settle(manifest(each | {"paused": True}))
    assert cluster.objects[NODES]["spec"]["replicas"] == 0
    assert cluster.objects[NODES]["metadata"]["annotations"][SPEC_HASH] == before


def test_6_fixed_partitions_make_edits_of_replicas_restart_nothing():
    each = pool(nodeConfig={"num-partitions": "{replicas}"}, partitions=8)
    two, nine = (children(manifest(each | {"replicas": n}))[NODES] for n in (2, 9))
    assert two["spec"]["template"] == nine["spec"]["template"]
    assert two["metadata"]["annotations"] == nine["metadata"]["annotations"]


def test_6_an_autoscaler_is_not_fought():
    cluster = FakeCluster()
    cluster.settle(manifest())
    cluster.scale("fed-supernode-gpu", 7)
    for _ in range(3):
        cluster.settle(manifest())
        assert cluster.objects[NODES]["spec"]["replicas"] == 7
    cluster.settle(manifest(pool(replicas=3)))  # a newer word
    assert cluster.objects[NODES]["spec"]["replicas"] == 3


@pytest.mark.parametrize("isolation", ["process", "subprocess"])
def test_7_one_volume_may_be_mounted_twice(isolation):
    each = pool(gpu={"mountAll": True, "vendor": "amd"}, **VOLUMES["volumes"])
    made = children(manifest(each, isolationMode=isolation))
    mounts = container(made[NODES], "supernode")["volumeMounts"]
    paths = [mount["mountPath"] for mount in mounts if mount["name"] == "data"]
    assert paths == ["/data", "/cache"]


def test_7_no_argument_passes_through_a_shell():
    each = pool(
        extraArgs=["--log-file=/a b; touch /c"],
        nodeConfig={"partition-id": "{index}", "where": "{node}", "say": '$(reboot) `x` "y"'},
    )
    supernode = container(children(manifest(each))[NODES], "supernode")
    assert "command" not in supernode
    assert "--log-file=/a b; touch /c" in supernode["args"]


def test_8_the_labels_that_are_documented_are_set():
    for ref, child in children(manifest()).items():
        labels = child["metadata"]["labels"]
        assert labels["flower.flwr.ai/federation"] == "fed", ref
        assert labels["flower.flwr.ai/component"] in ("superlink", "supernode"), ref
        if ref.kind == "StatefulSet":
            inside = child["spec"]["template"]["metadata"]["labels"]
            assert labels == inside
            assert child["spec"]["selector"]["matchLabels"].items() <= inside.items()


@pytest.mark.parametrize(
    ("name", "pool_name", "fits"),
    [("f" * 20, "p" * 21, True), ("f" * 20, "p" * 22, False), ("f" * 43, "p", False)],
)
def test_8_names_that_do_not_fit_are_refused_before_anything_is_made(name, pool_name, fits):
    federation = manifest(pool(pool_name), name=name)
    assert (admit(federation) == []) == fits
    assert (problems(Federation.of(federation)) == ()) == fits
    if fits:
        longest = max(len(ref.name) for ref in children(federation) if ref.kind == "StatefulSet")
        assert longest <= 52


def test_8_two_pools_of_one_name_are_refused():
    federation = manifest(pool("a"), pool("a"))
    assert admit(federation) != []
    assert "pools: two are named 'a'" in problems(Federation.of(federation))


def test_9_an_older_operators_deployment_is_cleaned_up():
    cluster = FakeCluster()
    cluster.add("Deployment", "fed-superlink")
    cluster.add("Deployment", "somebody-elses", owned=False)
    cluster.settle(manifest())
    assert Ref("Deployment", "fed-superlink") not in cluster.objects
    assert Ref("Deployment", "somebody-elses") in cluster.objects


def test_9_an_older_operators_workloads_are_taken_over():
    cluster = FakeCluster()
    labels = {"app.kubernetes.io/instance": "fed", "flower.flwr.ai/pool": "gpu"}
    old = {**labels, "app.kubernetes.io/managed-by": "flower-operator"}
    cluster.add("StatefulSet", "fed-supernode-gpu", labels=old, replicas=2)
    cluster.settle(manifest())
    found = cluster.objects[NODES]["spec"]["selector"]["matchLabels"]
    assert found == children(manifest())[NODES]["spec"]["selector"]["matchLabels"]
    assert cluster.condition("Ready") == "True"


def test_what_has_no_effect_is_said():
    template = {"spec": {"containers": [{"name": "dummy", "image": "x"}]}}
    federation = Federation.of(manifest(pool(podTemplate=template), mode="DaemonSet"))
    assert any("'dummy' is ignored" in text for text in warnings(federation))
