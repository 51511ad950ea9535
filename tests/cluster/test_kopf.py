"""An operator in kopf goes through its whole cycle, also past faults."""

import os
import subprocess
import sys

import pytest

from tests.cluster.clients import MERGE, Rest
from tests.cluster.faults import BROKEN, Outrun
from tests.cluster.samples import CRDS, GROUP, WIDGETS, widget, widget_crd
from tests.cluster.test_access import binding, role, rule

# Run by asyncio's own loop: `kopf run` takes uvloop where it is installed, whose connections share
# file descriptors with others after one that a server dropped (aiohttp 3.14.5, uvloop 0.23.0).
OPERATOR = """
import asyncio

import kopf

KIND = ("ground.example.org", "v1", "widgets")


@kopf.on.create(*KIND)
def created(body, patch, **_):
    kopf.info(body, reason="Created", message="a widget is there")
    patch.status["phase"] = "created"


@kopf.on.update(*KIND, field="spec.replicas")
def updated(new, patch, **_):
    patch.status["replicas"] = new
    patch.status["phase"] = "updated"


@kopf.on.delete(*KIND)
def deleted(name, logger, **_):
    logger.info("saw the end of %s", name)


kopf.configure()
asyncio.run(kopf.operator(standalone=True, namespaces=["default"]))
"""


class Operator:
    """kopf in a process of its own, as it runs in a pod."""

    def __init__(self, cluster, folder, token=None):
        self.folder = folder
        (folder / "robot.py").write_text(OPERATOR)
        path = cluster.kubeconfig(token, "operator")
        self.log = folder / "operator.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(folder / "robot.py")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "KUBECONFIG": str(path), "PYTHONWARNINGS": "ignore"},
            )

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def start_operator(cluster, admin, tmp_path):
    admin.done(admin.post(CRDS, widget_crd()))
    started = []

    def start(token=None):
        started.append(Operator(cluster, tmp_path, token))
        return started[-1]

    yield start
    for operator in started:
        operator.stop()


def phase_is(phase):
    def look(api):
        things = api.list("widgets")
        return bool(things) and things[0].get("status", {}).get("phase") == phase

    return look


def has_gone(api):
    return not api.list("widgets")


def test_create_update_and_delete(cluster, admin, start_operator):
    operator = start_operator()
    admin.done(admin.post(WIDGETS, widget()))
    assert cluster.wait_until(phase_is("created")), operator.log.read_text()
    made = admin.done(admin.get(f"{WIDGETS}/one"))
    assert made["metadata"]["finalizers"] == ["kopf.zalando.org/KopfFinalizerMarker"]
    admin.done(admin.patch(f"{WIDGETS}/one", {"spec": {"replicas": 2}}, MERGE))
    assert cluster.wait_until(phase_is("updated")), operator.log.read_text()
    admin.done(admin.delete(f"{WIDGETS}/one"))
    assert cluster.wait_until(has_gone), operator.log.read_text()
    assert "saw the end of one" in operator.log.read_text()
    assert cluster.wait_until(lambda api: bool(api.list("events")))
    (event,) = admin.list("/api/v1/namespaces/default/events")
    assert event["involvedObject"]["kind"] == "Widget"


def test_faults_and_a_restart_delay_the_operator_and_stop_it_not(cluster, admin, start_operator):
    operator = start_operator()
    cluster.faults.plan(Outrun(), verbs=frozenset({"patch"}), plural="widgets")
    cluster.faults.plan(BROKEN, verbs=frozenset({"patch"}), plural="widgets", after=1)
    admin.done(admin.post(WIDGETS, widget()))
    assert cluster.wait_until(phase_is("created")), operator.log.read_text()
    cluster.forget_history()
    cluster.restart_server()
    with Rest.of(cluster) as after:
        after.done(after.patch(f"{WIDGETS}/one", {"spec": {"replicas": 2}}, MERGE))
        assert cluster.wait_until(phase_is("updated")), operator.log.read_text()
        after.done(after.delete(f"{WIDGETS}/one"))
        assert cluster.wait_until(has_gone), operator.log.read_text()


def test_a_permission_that_is_missing_in_the_role_is_seen(cluster, admin, start_operator):
    path = "/apis/rbac.authorization.k8s.io/v1"
    rules = [
        rule([GROUP], ["widgets"], ["get", "list", "watch"]),
        rule([""], ["events"], ["create"]),
        rule(["apiextensions.k8s.io"], ["customresourcedefinitions"], ["list", "watch"]),
        rule([""], ["namespaces"], ["list", "watch"]),
    ]
    admin.done(admin.post(f"{path}/clusterroles", role("ClusterRole", "robots", *rules)))
    bound = binding("ClusterRoleBinding", "robots", "ClusterRole", "robot")
    admin.done(admin.post(f"{path}/clusterrolebindings", bound))
    operator = start_operator(cluster.service_account_token("default", "robot"))
    admin.done(admin.post(WIDGETS, widget()))

    def was_refused(_):
        return 'cannot patch resource "widgets"' in operator.log.read_text()

    assert cluster.wait_until(was_refused), operator.log.read_text()
    assert phase_is(None)(cluster.api)
