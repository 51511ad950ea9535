"""The CRDs: what is shipped is what the models say, and the API server refuses what they do."""

from pathlib import Path

import pytest
import yaml

from tests.federation.admission import MISSING, NEEDS, admitted, holds
from tests.federation.federations import manifest, matrix, pool
from uncurtail.deploy.text import as_yaml
from uncurtail.errors import UserError
from uncurtail.operator.crd import crds
from uncurtail.operator.rules import NAME_RULES, SPEC_RULES, problems
from uncurtail.operator.spec import Federation

SHIPPED = Path(__file__).parents[2] / "deploy/helm/uncurtail-operator/crds/crds.yaml"
FEDERATION, SUPERNODE_POOL = crds()
evaluated = pytest.mark.skipif(bool(NEEDS), reason=MISSING)

LINK_FIELDS = {
    "image", "superexecImage", "resources", "superexecResources", "env", "extraArgs",
    "podTemplate", "service", "volumes", "volumeMounts", "superexecVolumeMounts",
    "volumeClaimTemplates",
}  # fmt: skip
POOL_FIELDS = {
    "name", "replicas", "images", "gpu", "supernodeResources", "superexecResources",
    "podTemplate", "extraArgs", "env", "volumes", "volumeMounts", "superexecVolumeMounts",
    "volumeClaimTemplates", "nodeConfig",
}  # fmt: skip


def admit(federation) -> list[str]:
    """Why the API server would refuse it; the CEL part needs an engine."""
    if NEEDS:
        pytest.skip(MISSING)
    return admitted(federation, FEDERATION)[1]


def root(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes_of(schema):
    yield schema
    for each in schema.get("properties", {}).values():
        yield from nodes_of(each)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes_of(schema[key])


def test_the_shipped_crds_are_the_models():
    text = SHIPPED.read_text(encoding="utf-8")
    assert text == as_yaml(crds()), "run: uncurtail operator crd > deploy/helm/.../crds/crds.yaml"


def test_the_command_prints_what_is_shipped(capsys):
    from uncurtail import operatorcli

    operatorcli.crd()
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == crds()


@pytest.mark.parametrize("crd", crds(), ids=["federation", "supernodepool"])
def test_the_schema_is_structural(crd):
    for node in nodes_of(root(crd)):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), node
        assert not {"$ref", "$defs", "title", "allOf", "oneOf", "not", "nullable"} & set(node)
        assert "anyOf" not in node or node.get("x-kubernetes-int-or-string"), node
        assert not ("properties" in node and "additionalProperties" in node), node
        assert node.get("default", 0) is not None
        for key in node.get("x-kubernetes-list-map-keys", []):
            assert key in node["items"]["required"], "a key of a map must be there"


def test_a_pool_can_be_scaled_by_others():
    scale = SUPERNODE_POOL["spec"]["versions"][0]["subresources"]["scale"]
    properties = root(SUPERNODE_POOL)["properties"]
    for path in scale.values():
        _, part, field = path.split(".")
        assert field in properties[part]["properties"]


def test_every_field_and_default_of_the_reference_is_there():
    spec = root(FEDERATION)["properties"]["spec"]["properties"]
    link, nodes = spec["superlink"]["properties"], spec["supernodes"]["properties"]
    each = nodes["pools"]["items"]["properties"]
    assert {"mode", "isolationMode", "version", "insecure"} <= set(spec)
    assert spec["insecure"]["default"] is True
    assert set(link) >= LINK_FIELDS
    ports = link["service"]["properties"]["ports"]["properties"]
    defaults = {name: ports[name]["default"] for name in ("grpc", "serverAppIO", "extra")}
    assert defaults == {"grpc": 9092, "serverAppIO": 9091, "extra": 9093}
    assert set(each) >= POOL_FIELDS
    assert set(each["gpu"]["properties"]) == {
        "enabled", "vendor", "resourceName", "count", "mountAll"
    }  # fmt: skip
    assert (nodes["pools"]["minItems"], nodes["pools"]["maxItems"]) == (1, 16)


@evaluated
def test_a_broad_matrix_is_admitted_and_reads_back():
    for name, federation in matrix():
        made, errors = admitted(federation, FEDERATION)
        assert errors == [], name
        assert problems(Federation.of(made)) == (), name


REFUSED = {
    "no-pool": {
        **manifest(),
        "spec": {**manifest()["spec"], "supernodes": {"image": "x", "pools": []}},
    },
    "no-mode": {**manifest(), "spec": {k: v for k, v in manifest()["spec"].items() if k != "mode"}},
    "empty-image": manifest(link={"image": ""}),
    "bad-name": manifest(pool("Big")),
    "daemonset-with-replicas": {**manifest(), "spec": {**manifest()["spec"], "mode": "DaemonSet"}},
    "statefulset-without": manifest({"name": "a", "images": {}}),
    "negative": manifest(pool(replicas=-1)),
    "no-superexec-image": manifest(isolationMode="process", link={"superexecImage": ""}),
    "no-client-image": manifest(
        pool(images={"superexecClientApp": ""}), isolationMode="process"
    ),
    "superexec-image": manifest(link={"superexecImage": "x"}),
    "client-image": manifest(pool(images={"superexecClientApp": "x"})),
    "mount-all-of-whom": manifest(pool(gpu={"mountAll": True})),
    "tls-and-insecure": manifest(tls={"secretName": "x"}),
    "keys-without-tls": manifest(pool(auth={"secretName": "x"}), insecure=False),
    "keys-for-some": manifest(
        pool("a", auth={"secretName": "x"}), pool("b"), insecure=False, tls={"secretName": "t"}
    ),
    "public-keys-without-tls": manifest(
        pool(auth={"secretName": "x"}), link={"supernodeKeys": {"configMapName": "k"}}
    ),
    "public-keys-alone": manifest(
        insecure=False, tls={"secretName": "t"}, link={"supernodeKeys": {"configMapName": "k"}}
    ),
    "public-keys-nowhere": manifest(
        pool(auth={"secretName": "x"}),
        insecure=False,
        tls={"secretName": "t"},
        link={"supernodeKeys": {}},
    ),
    "secret-for-no-superexec": manifest(superexecAuth={"secretName": "x"}),
    "both-budgets": manifest(pool(podDisruptionBudget={"minAvailable": 1, "maxUnavailable": 1})),
    "no-budget": manifest(link={"podDisruptionBudget": {}}),
    "name-with-dots": manifest(name="a.b"),
    "name-with-digit": manifest(name="1a"),
    "names-too-long": manifest(pool("p" * 30), name="f" * 12),
    "unknown-field": manifest(pool(replica=2)),
    "vendor": manifest(pool(gpu={"vendor": "intel"})),
}  # fmt: skip


def operator_says(federation):
    try:
        return problems(Federation.of(federation))
    except UserError as error:
        return (str(error),)


@evaluated
@pytest.mark.parametrize("federation", REFUSED.values(), ids=REFUSED)
def test_the_api_server_and_the_operator_refuse_the_same(federation):
    assert admit(federation) != []
    assert operator_says(federation) != ()


@evaluated
@pytest.mark.parametrize("rule", SPEC_RULES, ids=lambda rule: rule.message[:40])
def test_each_rule_says_the_same_twice(rule):
    seen = set()
    for federation in (*REFUSED.values(), *(each for _, each in matrix())):
        try:
            read = Federation.of(federation)
        except ValueError:
            continue
        spec = {"insecure": True, **federation["spec"]}
        verdict = holds(rule.cel, spec)
        assert verdict == rule.holds(read.spec), federation
        seen.add(verdict)
    assert seen == {True, False} or "name at least one pool" in rule.message


@evaluated
@pytest.mark.parametrize("rule", NAME_RULES, ids=lambda rule: rule.message[:40])
def test_each_rule_about_names_says_the_same_twice(rule):
    seen = set()
    for federation in (*REFUSED.values(), manifest()):
        try:
            read = Federation.of(federation)
        except ValueError:
            continue
        verdict = holds(rule.cel, federation)
        assert verdict == rule.holds(read), federation
        seen.add(verdict)
    assert seen == {True, False}
