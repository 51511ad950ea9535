"""Pods are processes: what they see, how they start, are probed, and end."""

import asyncio
import base64
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.clients import MERGE, Kubectl
from tests.cluster.controllers.pods import is_up
from tests.cluster.kubelet.containers import Container
from tests.cluster.objects import dig
from tests.cluster.samples import (
    CONFIG_MAPS,
    PODS,
    SERVICES,
    STATEFUL_SETS,
    config_map,
    pod_spec,
    service,
    workload,
)

CLAIM = {
    "metadata": {"name": "data"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


def sh(script):
    return ["sh", "-c", script]


def pod(name, script, *, more=None, **spec):
    whole = pod_spec(sh(script), **spec)
    whole["containers"][0].update(more or {})
    labels = {"app": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": whole,
    }


def phase_is(name, phase):
    return lambda api: any(
        p["metadata"]["name"] == name and dig(p, "status.phase") == phase for p in api.list("pods")
    )


def is_running(*names):
    return lambda api: {p["metadata"]["name"] for p in api.list("pods") if is_up(p)} >= set(names)


def log(pods, name, **query):
    answer = pods.get(f"{PODS}/{name}/log", **query)
    assert answer.is_success, answer.text
    return answer.text


def finished(kubelet, pods, thing, phase="Succeeded"):
    """The log of a pod that runs to its end."""
    thing["spec"].setdefault("restartPolicy", "Never")
    pods.done(pods.post(PODS, thing))
    name = thing["metadata"]["name"]
    assert kubelet.cluster.wait_until(phase_is(name, phase)), pods.get(f"{PODS}/{name}").text
    return log(pods, name)


def marked(mark):
    """Living processes with a word in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if mark in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_pod_gets_its_environment(kubelet, pods):
    pods.done(pods.post(CONFIG_MAPS, config_map("settings", colour="red", shape="round")))
    secret = {"metadata": {"name": "keys"}, "data": {"key": base64.b64encode(b"s3").decode()}}
    pods.done(pods.post("/api/v1/namespaces/default/secrets", secret))
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
        {"name": "BOTH", "value": "$(NAME)-$(KEY)-$$(KEY)"},
    ]
    more = {"env": env, "envFrom": [{"configMapRef": {"name": "settings"}}], "args": ["$(BOTH)"]}
    script = 'echo "$NAME $NODE $APP $BOTH $colour $shape"; hostname; [ -n "$IP" ] && echo "$0"'
    seen = finished(kubelet, pods, pod("one", script, more=more)).splitlines()
    assert seen == ["one alpha one one-s3-$(KEY) red round", "one", "one-s3-$(KEY)"]


def test_volumes_are_where_the_container_wants_them_and_nothing_else_changes(kubelet, pods):
    pods.done(pods.post(CONFIG_MAPS, config_map("settings", a="1", b="2")))
    volumes = [
        {"name": "map", "configMap": {"name": "settings", "items": [{"key": "a", "path": "x/a"}]}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "one", "configMap": {"name": "settings"}},
    ]
    mounts = [
        {"name": "map", "mountPath": "/etc/settings"},
        {"name": "scratch", "mountPath": "/ground/scratch"},
        {"name": "one", "mountPath": "/etc/b.conf", "subPath": "b"},
    ]
    script = """
    cat /etc/settings/x/a /etc/b.conf && echo
    echo hi > /ground/scratch/file && cat /ground/scratch/file
    echo no > /etc/settings/x/a || echo read-only
    echo mine > /etc/ground-test && cat /etc/ground-test
    cat /var/run/secrets/kubernetes.io/serviceaccount/namespace
    """
    thing = pod("one", script, more={"volumeMounts": mounts}, volumes=volumes)
    seen = finished(kubelet, pods, thing)
    assert seen.splitlines()[:2] == ["12", "hi"]
    assert "read-only\nmine\ndefault" in seen
    assert not Path("/etc/ground-test").exists()


def test_a_mounted_folder_follows_its_source_and_a_single_file_does_not(kubelet, pods):
    pods.done(pods.post(CONFIG_MAPS, config_map("settings", a="old", b="old")))
    more = {
        "env": [{"name": "KEY", "value": "a"}],
        "volumeMounts": [
            {"name": "map", "mountPath": "/etc/all"},
            {"name": "map", "mountPath": "/etc/one", "subPathExpr": "$(KEY)"},
        ],
    }
    script = "until grep -q new /etc/all/a; do sleep 0.1; done; ls /etc/all; cat /etc/one"
    volumes = [{"name": "map", "configMap": {"name": "settings"}}]
    pods.done(
        pods.post(PODS, pod("one", script, more=more, volumes=volumes, restartPolicy="Never"))
    )
    assert kubelet.cluster.wait_until(is_running("one"))
    changed = {"data": {"a": "new", "b": None}}
    pods.done(pods.patch(f"{CONFIG_MAPS}/settings", changed, MERGE))
    assert kubelet.cluster.wait_until(phase_is("one", "Succeeded"))
    assert log(pods, "one") == "a\nold"


def test_a_missing_secret_is_waited_for(kubelet, pods):
    source = {"secretKeyRef": {"name": "keys", "key": "key"}}
    more = {"env": [{"name": "KEY", "valueFrom": source}]}
    pods.done(pods.post(PODS, pod("one", "echo $KEY; sleep 60", more=more)))

    def reason(api):
        (thing,) = api.list("pods")
        statuses = dig(thing, "status.containerStatuses") or [{}]
        return dig(statuses[0], "state.waiting.reason")

    assert kubelet.cluster.wait_until(lambda api: reason(api) == "CreateContainerConfigError")
    secret = {"metadata": {"name": "keys"}, "stringData": {"key": "late"}}
    pods.done(pods.post("/api/v1/namespaces/default/secrets", secret))
    assert kubelet.cluster.wait_until(is_running("one"))


def test_init_containers_and_sidecars_come_first(kubelet, pods):
    thing = pod("one", "cat /ground/made; sleep 0.2")
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/ground"}]}
    script = "echo one >> /ground/made"
    side = "echo two >> /ground/made; trap 'exit 0' TERM; while true; do sleep 0.1; done"
    thing["spec"]["volumes"] = [{"name": "shared", "emptyDir": {}}]
    thing["spec"]["containers"][0].update(mount)
    ready = {"exec": {"command": ["grep", "two", "/ground/made"]}, "periodSeconds": 1}
    thing["spec"]["initContainers"] = [
        {"name": "first", "image": "ground", "command": sh(script), **mount},
        {
            "name": "side",
            "image": "ground",
            "command": sh(side),
            "restartPolicy": "Always",
            "startupProbe": ready,
            **mount,
        },
    ]
    assert finished(kubelet, pods, thing) == "one\ntwo\n"


def test_a_container_that_fails_is_started_again_and_its_old_log_is_kept(kubelet, pods):
    pods.done(pods.post(PODS, pod("one", "echo $$ started; exit 3")))

    def status(api):
        (thing,) = api.list("pods")
        return (dig(thing, "status.containerStatuses") or [{}])[0]

    assert kubelet.cluster.wait_until(lambda api: status(api).get("restartCount", 0) >= 2)
    last = kubelet.cluster.call(status)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (3, "Error")
    assert log(pods, "one", previous="true") == "1 started\n"


def test_a_pod_that_fails_for_good_has_failed(kubelet, pods):
    finished(kubelet, pods, pod("one", "exit 1"), phase="Failed")


@pytest.mark.parametrize(
    "probe",
    [
        pytest.param({"exec": {"command": ["test", "-e", "/tmp/ready"]}}, id="exec"),
        pytest.param({"tcpSocket": {"port": "web"}}, id="tcp"),
        pytest.param({"httpGet": {"port": 8080, "path": "/"}}, id="http"),
    ],
)
def test_a_pod_is_ready_when_its_probe_says_so(kubelet, pods, probe):
    more = {
        "readinessProbe": {**probe, "periodSeconds": 1},
        "ports": [{"name": "web", "containerPort": 8080}],
    }
    script = "sleep 0.7; cd /tmp && touch ready && exec python3 -m http.server 8080"
    pods.done(pods.post(PODS, pod("one", script, more=more)))
    assert kubelet.cluster.wait_until(phase_is("one", "Running"))
    assert not kubelet.cluster.call(is_running("one"))
    assert kubelet.cluster.wait_until(is_running("one"))


def test_a_dead_container_is_found_out_and_started_again(kubelet, pods):
    probe = {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1}
    more = {"livenessProbe": {**probe, "failureThreshold": 1, "initialDelaySeconds": 1}}
    script = "touch /tmp/alive; sleep 0.5; rm /tmp/alive; sleep 60"
    pods.done(pods.post(PODS, pod("one", script, more=more)))

    def restarts(api):
        (thing,) = api.list("pods")
        return sum(s["restartCount"] for s in dig(thing, "status.containerStatuses") or [])

    assert kubelet.cluster.wait_until(lambda api: restarts(api) > 0)


def test_an_end_is_announced_before_it_is_forced(kubelet, pods):
    script = "trap 'echo told >> /ground/log; exit 0' TERM; while true; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": sh("echo asked >> /ground/log")}}}
    claim = {"metadata": {"name": "data"}, "spec": CLAIM["spec"]}
    pods.done(pods.post("/api/v1/namespaces/default/persistentvolumeclaims", claim))
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/ground"}]}
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    thing = pod("one", script, more={"lifecycle": hook, **mounts}, volumes=volumes)
    pods.done(pods.post(PODS, thing))
    assert kubelet.cluster.wait_until(is_running("one"))
    pods.done(pods.delete(f"{PODS}/one"))
    assert kubelet.cluster.wait_until(lambda api: not api.list("pods"))
    after = pod("two", "cat /ground/log", more=mounts, volumes=volumes)
    assert finished(kubelet, pods, after) == "asked\ntold\n"


def test_who_does_not_listen_is_killed_when_his_time_is_over(kubelet, pods):
    # as process 1 of its box, sh has no handler for SIGTERM: it is not told, as in a container
    thing = pod("one", "while true; do sleep 987654; done")
    thing["spec"]["terminationGracePeriodSeconds"] = 1
    pods.done(pods.post(PODS, thing))
    assert kubelet.cluster.wait_until(is_running("one"))
    assert kubelet.cluster.wait_until(lambda _: len(marked("987654")) == 1)
    pods.done(pods.delete(f"{PODS}/one"))
    assert kubelet.cluster.wait_until(lambda api: not api.list("pods"))
    assert marked("987654") == []


def test_pods_find_services_and_each_other_by_name(kubelet, pods):
    thing = workload("StatefulSet", "web", sh("cd /tmp; exec python3 -m http.server 8080"))
    container = thing["spec"]["template"]["spec"]["containers"][0]
    container["readinessProbe"] = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    pods.done(pods.post(STATEFUL_SETS, thing))
    ports = [{"port": 80, "targetPort": 8080}]
    outer = service("front", ports=ports, selector={"app": "web"})
    pods.done(pods.post(SERVICES, outer))
    pods.done(pods.post(SERVICES, service("web", 8080, clusterIP="None")))
    assert kubelet.cluster.wait_until(is_running("web-0"))
    fetch = "import urllib.request as r, sys; print(r.urlopen(sys.argv[1], timeout=9).status)"
    urls = ["http://front/", "http://front.default.svc/", "http://web-0.web.default.svc:8080/"]
    script = "; ".join(f"python3 -c '{fetch}' {url}" for url in urls)
    assert finished(kubelet, pods, pod("one", script)).split() == ["200"] * 3


def test_a_pod_speaks_to_the_api_with_its_own_account(kubelet, pods):
    script = """
    cd /var/run/secrets/kubernetes.io/serviceaccount
    url=https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT
    kubectl --server=$url --certificate-authority=ca.crt --token=$(cat token) get pods 2>&1
    """
    seen = finished(kubelet, pods, pod("one", script), phase="Failed")
    assert 'User "system:serviceaccount:default:default" cannot list resource "pods"' in seen


def test_a_stateful_pod_keeps_its_disk(kubelet, pods):
    script = "hostname >> /ground/log; sleep 60"
    thing = workload("StatefulSet", "db", sh(script), volumeClaimTemplates=[CLAIM])
    container = thing["spec"]["template"]["spec"]["containers"][0]
    container["volumeMounts"] = [{"name": "data", "mountPath": "/ground"}]
    thing["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0
    pods.done(pods.post(STATEFUL_SETS, thing))
    file = kubelet.cluster.folder / "claims/default/data-db-0/log"
    assert kubelet.cluster.wait_until(lambda _: file.exists() and file.read_text() == "db-0\n")
    for replicas in (0, 1):
        pods.done(pods.patch(f"{STATEFUL_SETS}/db/scale", {"spec": {"replicas": replicas}}, MERGE))
        assert kubelet.cluster.wait_until(
            lambda api, n=replicas: (
                len([p for p in api.list("pods") if is_up(p)]) == n and len(api.list("pods")) == n
            )
        )
    assert kubelet.cluster.wait_until(lambda _: file.read_text() == "db-0\ndb-0\n")


def test_kubectl_reads_logs(kubelet, pods):
    finished(kubelet, pods, pod("one", "echo a; echo b"))
    kubectl = Kubectl.of(kubelet.cluster)
    assert kubectl("logs", "one") == "a\nb\n"
    assert kubectl("logs", "one", "--tail=1") == "b\n"
    assert "Succeeded" in kubectl("get", "pods")


def test_a_process_that_was_reaped_a_moment_ago_can_be_stopped(tmp_path):
    async def stop() -> None:
        process = await asyncio.create_subprocess_exec("true", start_new_session=True)
        give_up = time.monotonic() + 2.0
        # The loop stands still, so nobody has heard of the exit code yet.
        while Path(f"/proc/{process.pid}").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        container = Container({"name": "one", "image": "x"}, "", tmp_path / "log", lambda: None)
        container._process = process
        assert process.returncode is None
        await container.stop(0.0)
        await process.wait()

    asyncio.run(stop())
