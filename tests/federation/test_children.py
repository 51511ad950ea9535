"""What a Federation becomes, object by object."""

import pytest

from tests.federation.federations import (
    GPUS,
    TEMPLATE,
    VOLUMES,
    children,
    container,
    manifest,
    pool,
)
from uncurtail.operator.observed import Ref

NODES = Ref("StatefulSet", "fed-supernode-gpu")
LINK = Ref("StatefulSet", "fed-superlink")
TLS = {"insecure": False, "tls": {"secretName": "tls"}}


def nodes(*pools, **spec):
    return children(manifest(*pools, **spec))[NODES]


def pod(workload):
    return workload["spec"]["template"]["spec"]


def volume(workload, name):
    return next(each for each in pod(workload)["volumes"] if each["name"] == name)


@pytest.mark.parametrize("isolation", ["process", "subprocess"])
def test_gpus_go_to_the_container_that_computes(isolation):
    made = nodes(pool(gpu=GPUS["nvidia"]), isolationMode=isolation)
    holders = {
        each["name"]: each["resources"].get("limits", {}).get("nvidia.com/gpu")
        for each in pod(made)["containers"]
    }
    expected = {"process": "superexec-clientapp", "subprocess": "supernode"}[isolation]
    assert {name for name, count in holders.items() if count == "2"} == {expected}


@pytest.mark.parametrize(
    ("gpu", "resource"),
    [({"enabled": True}, "nvidia.com/gpu"), ({"enabled": True, "vendor": "amd"}, "amd.com/gpu"),
     (GPUS["custom"], "example.com/gpu")],
)  # fmt: skip
def test_a_gpu_is_asked_for_by_its_resource(gpu, resource):
    resources = container(nodes(pool(gpu=gpu)), "supernode")["resources"]
    assert resources == {"limits": {resource: "1"}, "requests": {resource: "1"}}


def test_all_gpus_of_a_node_are_mounted_as_each_vendor_wants():
    nvidia = nodes(pool(gpu=GPUS["all-nvidia"]))
    assert pod(nvidia)["runtimeClassName"] == "nvidia"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container(nvidia, "supernode")[
        "env"
    ]
    assert container(nvidia, "supernode")["securityContext"] == {"allowPrivilegeEscalation": False}
    amd = nodes(pool(gpu=GPUS["all-amd"]), isolationMode="process")
    for each in pod(amd)["containers"]:
        assert each["securityContext"] == {"privileged": True}, "no pair that the server refuses"
        assert {"/dev/kfd", "/dev/dri"} <= {mount["mountPath"] for mount in each["volumeMounts"]}


def test_supernodes_never_see_the_superlinks_private_key():
    made = children(manifest(isolationMode="process", **TLS))
    items = volume(made[NODES], "flower-tls")["secret"]["items"]
    assert [item["key"] for item in items] == ["ca.crt"]
    superexec = container(made[LINK], "superexec-serverapp")
    mounted = {mount["name"] for mount in superexec["volumeMounts"]}
    assert mounted == {"flower-ca"}, "nor does the container that runs users' code"
    assert [i["key"] for i in volume(made[LINK], "flower-ca")["secret"]["items"]] == ["ca.crt"]


@pytest.mark.parametrize(
    ("mode", "key"), [("StatefulSet", "FLOWER_POD_NAME"), ("DaemonSet", "FLOWER_NODE_NAME")]
)
def test_a_supernode_sees_no_key_but_its_own(mode, key):
    made = children(manifest(pool(auth={"secretName": "keys"}), mode=mode, **TLS))
    supernode = container(made[Ref(mode, NODES.name)], "supernode")
    (mount,) = (m for m in supernode["volumeMounts"] if m["name"] == "flower-auth")
    assert (mount["mountPath"], mount["subPathExpr"]) == ("/etc/flower/auth/key", f"$({key})")
    assert key in {variable["name"] for variable in supernode["env"]}


def test_no_pod_is_given_a_token_of_the_api_server():
    made = children(manifest())
    for ref, child in made.items():
        if ref.kind == "ServiceAccount":
            assert child["automountServiceAccountToken"] is False
        if ref.kind == "StatefulSet":
            assert pod(child)["automountServiceAccountToken"] is False
            assert Ref("ServiceAccount", pod(child)["serviceAccountName"]) in made


def test_a_pod_template_stands_except_for_what_makes_the_pod_ours():
    given = {
        **TEMPLATE,
        "spec": {
            **TEMPLATE["spec"],
            "serviceAccountName": "mine",
            "terminationGracePeriodSeconds": 7,
            "containers": [
                {
                    "name": "supernode",
                    "image": "theirs",
                    "args": ["theirs"],
                    "env": [{"name": "A", "value": "template"}],
                    "volumeMounts": [{"name": "x", "mountPath": "/x"}],
                    "readinessProbe": {"exec": {"command": ["true"]}},
                },
                {"name": "dummy", "image": "dummy"},
            ],
        },
    }
    made = nodes(pool(podTemplate=given, env=[{"name": "A", "value": "pool"}]))
    spec = pod(made)
    for field in ("tolerations", "topologySpreadConstraints", "initContainers", "imagePullSecrets"):
        assert spec[field] == given["spec"][field]
    assert (spec["serviceAccountName"], spec["terminationGracePeriodSeconds"]) == ("mine", 7)
    meta = made["spec"]["template"]["metadata"]
    assert (meta["labels"]["team"], meta["annotations"]["note"]) == ("ml", "kept")
    assert [each["name"] for each in spec["containers"]] == ["supernode"]
    ours = spec["containers"][0]
    assert ours["image"] == "flwr/supernode:1.41.0"
    assert "--isolation=subprocess" in ours["args"]
    assert ours["env"] == [{"name": "A", "value": "template"}]
    assert {"name": "x", "mountPath": "/x"} in ours["volumeMounts"]
    assert ours["readinessProbe"] == {"exec": {"command": ["true"]}}


def test_supernodes_have_the_time_to_leave_that_their_pool_says():
    drain = {"terminationGracePeriodSeconds": 600, "preStop": ["leave", "--now"]}
    made = nodes(pool(drain=drain), drain={"terminationGracePeriodSeconds": 9})
    assert pod(made)["terminationGracePeriodSeconds"] == 600
    hook = container(made, "supernode")["lifecycle"]["preStop"]
    assert hook == {"exec": {"command": ["leave", "--now"]}}
    assert (
        pod(nodes(drain={"terminationGracePeriodSeconds": 9}))["terminationGracePeriodSeconds"] == 9
    )


def test_a_supernode_can_read_that_it_has_to_go():
    made = nodes()
    mounts = container(made, "supernode")["volumeMounts"]
    assert {
        "name": "flower-podinfo",
        "mountPath": "/etc/flower/podinfo",
        "readOnly": True,
    } in mounts
    (item,) = volume(made, "flower-podinfo")["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == "metadata.annotations"


def test_a_persistent_superlink_keeps_its_database_on_a_claim_of_its_own():
    made = children(manifest(isolationMode="process", link={"persistence": {"size": "3Gi"}}))[LINK]
    (claim,) = made["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
    link = container(made, "superlink")
    assert "--database=/var/lib/flower/state.db" in link["args"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/var/lib/flower"} in link[
        "volumeMounts"
    ]
    assert container(made, "superexec-serverapp")["volumeMounts"] == []


def test_a_superexec_mounts_what_its_side_does_unless_it_is_told_otherwise():
    plain = {key: value for key, value in VOLUMES["volumes"].items() if "superexec" not in key}

    def paths(**fields):
        made = nodes(pool(**fields), isolationMode="process")
        mounts = container(made, "superexec-clientapp")["volumeMounts"]
        return [mount["mountPath"] for mount in mounts if mount["name"] == "data"]

    assert paths(**plain) == ["/data", "/cache"]
    assert paths(**VOLUMES["volumes"]) == ["/app-data"]
    assert paths(**{**plain, "superexecVolumeMounts": []}) == []


def test_a_restricted_pod_can_write_nowhere_but_where_flower_must():
    made = nodes(isolationMode="process", podSecurity="restricted")
    assert pod(made)["securityContext"]["runAsNonRoot"] is True
    for each in pod(made)["containers"]:
        context = each["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        home = next(v["value"] for v in each["env"] if v["name"] == "FLWR_HOME")
        assert {home, "/tmp"} <= {mount["mountPath"] for mount in each["volumeMounts"]}


def test_probes_ask_where_flower_answers_and_can_be_left_out():
    made = nodes(isolationMode="process")
    for each in pod(made)["containers"]:
        (address,) = (a for a in each["args"] if a.startswith("--health-server-address"))
        assert address.endswith(f":{each['livenessProbe']['grpc']['port']}")
    without = nodes(probes={"enabled": False})
    assert "livenessProbe" not in container(without, "supernode")
    assert not any("health" in arg for arg in container(without, "supernode")["args"])


def test_budgets_guard_pools_and_a_superlink_only_when_asked():
    made = children(manifest())
    assert made[Ref("PodDisruptionBudget", NODES.name)]["spec"]["maxUnavailable"] == 1
    assert Ref("PodDisruptionBudget", LINK.name) not in made
    asked = manifest(
        pool(podDisruptionBudget={"minAvailable": "50%"}),
        link={"podDisruptionBudget": {"maxUnavailable": 0}},
    )
    made = children(asked)
    assert made[Ref("PodDisruptionBudget", NODES.name)]["spec"]["minAvailable"] == "50%"
    assert "maxUnavailable" not in made[Ref("PodDisruptionBudget", NODES.name)]["spec"]
    assert made[Ref("PodDisruptionBudget", LINK.name)]["spec"]["maxUnavailable"] == 0


def test_a_network_policy_lets_in_the_pools_and_whom_the_user_names():
    peer = {"namespaceSelector": {"matchLabels": {"team": "ml"}}}
    made = children(manifest(networkPolicy={"enabled": True, "allowFrom": [peer]}))
    rules = made[Ref("NetworkPolicy", LINK.name)]["spec"]["ingress"]
    (own,), (others,) = (rule["from"] for rule in rules)
    labels = pod_labels(made[NODES])
    assert own["podSelector"]["matchLabels"].items() <= labels.items()
    assert others == peer
    closed = made[Ref("NetworkPolicy", "fed-supernode")]["spec"]
    assert closed["ingress"] == []
    assert closed["podSelector"]["matchLabels"].items() <= labels.items()
    assert not any(ref.kind == "NetworkPolicy" for ref in children(manifest()))


def pod_labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def test_pods_of_a_pool_have_names_and_start_together():
    made = children(manifest())
    spec = made[NODES]["spec"]
    assert spec["podManagementPolicy"] == "Parallel"
    service = made[Ref("Service", spec["serviceName"])]["spec"]
    assert (service["clusterIP"], service["selector"]) == ("None", spec["selector"]["matchLabels"])


def test_a_daemonset_has_nothing_that_only_a_statefulset_has():
    made = children(manifest(pool(**VOLUMES["claims"]), mode="DaemonSet"))
    spec = made[Ref("DaemonSet", NODES.name)]["spec"]
    assert not {"replicas", "serviceName", "volumeClaimTemplates"} & set(spec)
    assert not any(ref.kind in ("SuperNodePool", "PodDisruptionBudget") for ref in made)


def test_every_child_goes_with_its_federation():
    for ref, child in children(manifest()).items():
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["controller"]) == ("Federation", True), ref
        assert child["metadata"]["namespace"] == "ml"
