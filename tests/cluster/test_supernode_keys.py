"""A federation with authentication: real Flower in pods, and keys that a folder keeps known."""

import os
import signal

import pytest

from tests.cluster.clients import MERGE
from tests.cluster.operators import make_namespace
from tests.federation.federations import children, manifest, pool
from uncurtail.adapters.certificates import write_server_certificates, write_session_key

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

ML = "/api/v1/namespaces/ml"
PATHS = {
    "ServiceAccount": f"{ML}/serviceaccounts",
    "Service": f"{ML}/services",
    "StatefulSet": "/apis/apps/v1/namespaces/ml/statefulsets",
}
NODES = ("fed-supernode-gpu-0", "fed-supernode-gpu-1")
ONLINE = '/v1/fleet/activate-node HTTP/1.1" 200'
# Three Pythons that import Flower, on cores that others use, too.
START_S = 120


def federation():
    return manifest(
        pool(auth={"secretName": "private-keys"}),
        insecure=False,
        tls={"secretName": "tls"},
        probes={"periodSeconds": 1},
        link={"supernodeKeys": {"configMapName": "public-keys"}},
    )


def fill(pods, folder):
    """What a person makes: certificates, pairs of keys, and one file that is none."""
    write_server_certificates(folder / "tls", "fed-superlink")
    files = {"tls.crt": "server.crt", "tls.key": "server.key", "ca.crt": "ca.crt"}
    tls = {name: (folder / "tls" / file).read_text() for name, file in files.items()}
    for name in NODES:
        write_session_key(folder / name)
    private = {name: (folder / name).read_text() for name in NODES}
    public = {f"{name}.pub": (folder / f"{name}.pub").read_text() for name in NODES}
    for name, data in (("tls", tls), ("private-keys", private)):
        secret = {"metadata": {"name": name}, "stringData": data}
        pods.done(pods.post(f"{ML}/secrets", secret))
    keys = {"metadata": {"name": "public-keys"}, "data": {**public, "slip": "ssh-nonsense"}}
    pods.done(pods.post(f"{ML}/configmaps", keys))


def apply(pods, federation):
    for ref, child in children(federation).items():
        if ref.kind in PATHS:
            # There is no Federation on this server to own it.
            del child["metadata"]["ownerReferences"]
            pods.done(pods.post(PATHS[ref.kind], child))


def container(kubelet, pod, name):
    for worker in kubelet.workers.values():
        if worker.pod["metadata"]["name"] == pod:
            return next(each for each in worker.main if each.name == name)
    return None


def log(kubelet, pod, name):
    """What this start of a container has printed."""
    found = container(kubelet, pod, name)
    return found.log.read_text() if found is not None and found.log.exists() else ""


def test_keys_are_registered_again_after_a_restart_and_taken_away(kubelet, pods, tmp_path):
    make_namespace(pods, "ml")
    fill(pods, tmp_path)
    apply(pods, federation())

    def link(name):
        return log(kubelet, "fed-superlink-0", name)

    def all_logs():
        nodes = "".join(log(kubelet, node, "supernode") for node in NODES)
        return f"{link('superlink')}\n{link('supernode-keys')}\n{nodes}"

    def until(is_true):
        assert kubelet.cluster.wait_until(lambda _: is_true(), START_S), all_logs()

    def counts(text, name):
        return link(name).count(text)

    until(lambda: counts(ONLINE, "superlink") >= 2)
    assert [f"register {node}\n" in link("supernode-keys") for node in NODES] == [True, True]
    assert "slip: not an ECDSA public key" in link("supernode-keys")

    # The SuperLink has no disk, so it has forgotten both.
    os.kill(container(kubelet, "fed-superlink-0", "superlink").pid(), signal.SIGKILL)
    for node in NODES:
        until(lambda node=node: counts(f"register {node}\n", "supernode-keys") == 2)
    until(lambda: counts(ONLINE, "superlink") >= 2)
    assert container(kubelet, "fed-superlink-0", "supernode-keys").restarts == 0

    before = container(kubelet, NODES[1], "supernode").restarts
    key = {"data": {f"{NODES[1]}.pub": None}}
    pods.done(pods.patch(f"{ML}/configmaps/public-keys", key, MERGE))
    until(lambda: f"unregister {NODES[1]} " in link("supernode-keys"))
    # It ends when it is refused, and is refused again when it tries anew.
    until(lambda: container(kubelet, NODES[1], "supernode").restarts >= before + 2)
    assert counts(ONLINE, "superlink") == 2, all_logs()
    assert container(kubelet, NODES[0], "supernode").is_ready
