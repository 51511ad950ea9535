"""The container that keeps public keys registered, and the program that it is handed."""

import ast
import sys

from tests.federation.federations import children, container, manifest, pool
from tests.federation.kubelet import expanded
from uncurtail.operator.nodekeys import PROGRAM
from uncurtail.operator.observed import Ref
from uncurtail.operator.rules import warnings
from uncurtail.operator.spec import Federation

LINK = Ref("StatefulSet", "fed-superlink")


def federation(**spec):
    link = {"supernodeKeys": {"configMapName": "public-keys"}, **spec.pop("link", {})}
    auth = pool(auth={"secretName": "keys"})
    return manifest(auth, insecure=False, tls={"secretName": "tls"}, link=link, **spec)


def pod(made):
    return made[LINK]["spec"]["template"]["spec"]


def test_keys_lie_in_a_folder_that_stays_up_to_date_beside_the_superlink():
    made = children(federation())
    keeper = container(made[LINK], "supernode-keys")
    (mount,) = (m for m in keeper["volumeMounts"] if m["name"] == "flower-supernode-keys")
    assert f"--keys={mount['mountPath']}" in keeper["args"]
    assert "subPath" not in mount, "the kubelet never mends what is mounted so"
    (volume,) = (v for v in pod(made)["volumes"] if v["name"] == mount["name"])
    assert volume["configMap"] == {"name": "public-keys"}
    assert keeper["image"] == "flwr/superlink:1.41.0"


def test_the_keeper_sees_no_secret_and_has_a_home_of_its_own():
    for security in ("baseline", "restricted"):
        made = children(federation(podSecurity=security, isolationMode="process"))
        keeper = container(made[LINK], "supernode-keys")
        (ca,) = (v for v in pod(made)["volumes"] if v["name"] == "flower-ca")
        assert [item["key"] for item in ca["secret"]["items"]] == ["ca.crt"]
        mounts = {mount["mountPath"]: mount["name"] for mount in keeper["volumeMounts"]}
        assert not {"flower-tls", "flower-superexec"} & set(mounts.values())
        (home,) = (v["value"] for v in keeper["env"] if v["name"] == "FLWR_HOME")
        assert mounts[home] == "flower-keys-home"
        assert keeper["securityContext"]["allowPrivilegeEscalation"] is False


def test_nobody_keeps_keys_unless_asked():
    made = children(
        manifest(pool(auth={"secretName": "k"}), insecure=False, tls={"secretName": "t"})
    )
    assert [each["name"] for each in pod(made)["containers"]] == ["superlink"]
    assert {volume["name"] for volume in pod(made)["volumes"]} == {"flower-tls"}


def test_a_pod_template_may_add_to_the_keeper_that_is_there():
    limits = {"limits": {"memory": "256Mi"}}
    template = {"spec": {"containers": [{"name": "supernode-keys", "resources": limits}]}}
    asked = federation(link={"podTemplate": template})
    assert container(children(asked)[LINK], "supernode-keys")["resources"] == limits
    assert warnings(Federation.of(asked)) == ()
    (warning,) = warnings(Federation.of(manifest(link={"podTemplate": template})))
    assert "'supernode-keys' is ignored" in warning


def test_the_program_needs_nothing_that_flower_does_not_bring():
    imported = set()
    for node in ast.walk(ast.parse(PROGRAM)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"cryptography", "flwr", "httpx"}


def test_the_kubelet_hands_the_program_over_as_it_is():
    assert expanded(PROGRAM, {"HOME": "/", "PATH": "/"}) == PROGRAM
