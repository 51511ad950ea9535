"""Roles decide what a service account may do; what is missing in a role fails a request."""

import pytest

from tests.cluster.clients import MERGE, Rest
from tests.cluster.samples import CONFIG_MAPS, STATEFUL_SETS, config_map, workload

RBAC = "/apis/rbac.authorization.k8s.io/v1"
_VERSION = "rbac.authorization.k8s.io/v1"


def role(kind, name, *rules):
    return {"apiVersion": _VERSION, "kind": kind, "metadata": {"name": name}, "rules": list(rules)}


def binding(kind, name, of, account):
    return {
        "apiVersion": _VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": of, "name": name},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": account}],
    }


def rule(groups, resources, verbs, **more):
    return {"apiGroups": groups, "resources": resources, "verbs": verbs, **more}


@pytest.fixture
def robot(cluster):
    with Rest.of(cluster, cluster.service_account_token("default", "robot")) as client:
        yield client


def grant(admin, *rules):
    admin.done(admin.post(f"{RBAC}/clusterroles", role("ClusterRole", "robots", *rules)))
    bound = binding("ClusterRoleBinding", "robots", "ClusterRole", "robot")
    admin.done(admin.post(f"{RBAC}/clusterrolebindings", bound))


def test_without_a_role_nothing_is_allowed(robot):
    answer = robot.get(CONFIG_MAPS)
    assert answer.status_code == 403
    assert (
        'User "system:serviceaccount:default:robot" cannot list resource "configmaps" in API '
        'group "" in the namespace "default"' in answer.json()["message"]
    )
    assert robot.get("/apis").status_code == 200


def test_an_unknown_token_is_nobody(cluster):
    with Rest.of(cluster, "nonsense") as stranger:
        assert stranger.get(CONFIG_MAPS).status_code == 401


def test_each_verb_and_each_part_is_allowed_by_itself(admin, robot):
    grant(admin, rule(["apps"], ["statefulsets"], ["get", "create"]))
    robot.done(robot.post(STATEFUL_SETS, workload("StatefulSet", "db")))
    path = f"{STATEFUL_SETS}/db"
    robot.done(robot.get(path))
    assert robot.patch(path, {"spec": {"replicas": 2}}, MERGE).status_code == 403
    assert robot.get(f"{path}/scale").status_code == 403
    assert robot.get(STATEFUL_SETS, watch="true").status_code == 403
    assert robot.delete(path).status_code == 403


def test_apply_needs_to_create_where_there_is_nothing(admin, robot):
    grant(admin, rule([""], ["configmaps"], ["patch"]))
    assert robot.apply(f"{CONFIG_MAPS}/one", config_map("one"), "us").status_code == 403
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    robot.done(robot.apply(f"{CONFIG_MAPS}/one", config_map("one", a="1"), "us"))


def test_a_rule_may_name_its_objects(admin, robot):
    grant(admin, rule([""], ["configmaps"], ["get"], resourceNames=["mine"]))
    for name in ("mine", "yours"):
        admin.done(admin.post(CONFIG_MAPS, config_map(name)))
    assert robot.get(f"{CONFIG_MAPS}/mine").status_code == 200
    assert robot.get(f"{CONFIG_MAPS}/yours").status_code == 403


def test_a_role_in_a_namespace_holds_there_alone(admin, robot):
    path = f"{RBAC}/namespaces/default"
    reads = rule([""], ["configmaps"], ["list"])
    admin.done(admin.post(f"{path}/roles", role("Role", "readers", reads)))
    bound = binding("RoleBinding", "readers", "Role", "robot")
    admin.done(admin.post(f"{path}/rolebindings", bound))
    assert robot.get(CONFIG_MAPS).status_code == 200
    assert robot.get("/api/v1/namespaces/kube-system/configmaps").status_code == 403
    assert robot.get("/api/v1/configmaps").status_code == 403


def test_nobody_gives_away_what_he_does_not_have(admin, robot):
    grant(
        admin,
        rule([_VERSION.partition("/")[0]], ["roles"], ["create"]),
        rule([""], ["pods"], ["create"]),
    )
    path = f"{RBAC}/namespaces/default/roles"
    robot.done(robot.post(path, role("Role", "ok", rule([""], ["pods"], ["create"]))))
    answer = robot.post(path, role("Role", "bad", rule([""], ["pods", "secrets"], ["create"])))
    assert answer.status_code == 403
    assert "not currently held: create secrets" in answer.json()["message"]


def test_permissions_can_be_asked_for(admin, robot):
    grant(admin, rule([""], ["pods"], ["create"]))
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

    def may(verb):
        attributes = {"verb": verb, "resource": "pods", "namespace": "default"}
        spec = {"resourceAttributes": attributes}
        return robot.done(robot.post(path, {"spec": spec}))["status"]["allowed"]

    assert [may("create"), may("delete")] == [True, False]


def test_what_was_asked_is_on_record(cluster, admin, robot):
    robot.get(CONFIG_MAPS)
    user, ask = cluster.server.requests[-1]
    assert user == "system:serviceaccount:default:robot"
    assert (ask.verb, ask.resource) == ("list", "configmaps")
