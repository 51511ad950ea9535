"""From an experiment to documents: always the same, valid, and refused where they cannot work."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.federation.federations import UID, children
from uncurtail.config import ConfigError, load
from uncurtail.deploy.needs import grace_s
from uncurtail.deploy.render import Request, render
from uncurtail.operator.rules import problems
from uncurtail.operator.spec import Federation

HERE = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
THREE = HERE / "experiments" / "three-regions.toml"
DEMO = HERE / "experiments" / "demo.toml"
INSIDE = "gate.address=uncurtail-demo-gate.default.svc:8443"
OUTSIDE = "gate.address=gate.example.org:8443"
BESIDE = ("fleet.kind=kubernetes", *(f"sites.{s}.kubernetes.image=u:1" for s in ("solar", "windy")))
POOL = "sites.duck.kubernetes={federation='sites', pool='duck', gpus=2}"
PLACES = (*BESIDE, POOL)
CSV = ("energy.source=csv", *(f"sites.{site}.region={site}" for site in ("duck", "solar", "windy")))
CASES = {
    "three-regions": Request(THREE, namespace="brain", image="registry.example.org/u:1"),
    "three-regions-at-spp-tx": Request(THREE, context="spp-tx"),
    "sites-beside": Request(DEMO, (*PLACES, INSIDE), storage_class="fast"),
    "all-in-one-pod": Request(DEMO),
}


def documents(request):
    return list(yaml.safe_load_all(render(request).text))


def of(kind, request):
    (found,) = (each for each in documents(request) if each["kind"] == kind)
    return found


def demo(*settings, **options) -> Request:
    return Request(DEMO, settings, **options)


def container(request):
    return of("StatefulSet", request)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed_is_what_was_looked_at(name):
    path = GOLDEN / f"{name}.yaml"
    assert render(CASES[name]).text == path.read_text(encoding="utf-8"), (
        "look at the difference, then write it with: python -m tests.deploy.test_render"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate (of the extra test) is not installed",
)
@pytest.mark.parametrize("name", CASES)
def test_every_document_is_valid(name):
    import kubernetes_validate

    for document in documents(CASES[name]):
        if document["kind"] != "Federation":
            kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_experiment_arrives_as_it_was_written_and_is_loaded_there_with_the_same_settings():
    request = demo("seed=9", OUTSIDE)
    given = of("ConfigMap", request)["data"]["experiment.toml"]
    assert given == DEMO.read_text(encoding="utf-8")
    words = container(request)["args"]
    assert words == ["--set", "seed=9", "--set", OUTSIDE]
    command = container(request)["command"]
    assert command == [
        "uncurtail", "run", "/etc/uncurtail/experiment.toml", "--runs", "/runs", "--service",
    ]  # fmt: skip


def test_the_pod_is_as_restricted_as_kubernetes_knows_how():
    spec = of("StatefulSet", CASES["three-regions"])["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (one,) = spec["containers"]
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/runs", "/cache", "/tmp"}
    assert {each["value"] for each in one["env"]} <= {*writable, "/etc/uncurtail-clusters/config"}


def test_nothing_secret_is_printed_and_what_the_run_needs_is_told():
    rendered = render(CASES["three-regions"])
    kinds = [document["kind"] for document in rendered.documents]
    assert "Secret" not in kinds
    said = "\n".join(rendered.notes)
    assert "kubectl -n brain create secret generic uncurtail-three-regions-credentials" in said
    assert "--from-literal=WATTTIME_USERNAME=... --from-literal=WATTTIME_PASSWORD=..." in said
    assert "uncurtail-three-regions-kubeconfig --from-file=config=FILE" in said
    assert (
        "uncurtail-three-regions-credentials may also hold UNCURTAIL_REDIS_URL, HF_TOKEN." in said
    )
    for context in ("caiso-north", "spp-tx", "nem-sa"):
        assert f"--context {context} | kubectl --context {context} apply -f -" in said


@pytest.mark.parametrize(
    ("settings", "optional", "named"),
    [
        pytest.param((), True, "UNCURTAIL_REDIS_URL", id="nothing"),
        pytest.param(("tracking.wandb=online",), False, "WANDB_API_KEY", id="wandb"),
        pytest.param(("store.url=s3://b/p",), True, "AWS_SECRET_ACCESS_KEY", id="store"),
    ],
)
def test_the_pod_waits_for_its_secret_only_where_it_cannot_do_without(settings, optional, named):
    (source,) = container(demo(*settings))["envFrom"]
    assert source["secretRef"] == {"name": "uncurtail-demo-credentials", "optional": optional}
    assert named in "\n".join(render(demo(*settings)).notes)


def test_a_drain_with_machines_and_snapshots_fits_into_the_time_to_end():
    settings = load(THREE)
    given = of("StatefulSet", CASES["three-regions"])["spec"]["template"]["spec"]
    needed = 14 + settings.fleet.remote.release_wall_s + settings.fleet.snapshot_timeout_wall_s
    assert given["terminationGracePeriodSeconds"] == grace_s(settings) >= needed
    more = load(THREE, ["fleet.snapshot_timeout_wall_s=1000"])
    assert grace_s(more) == grace_s(settings) + 1000 - settings.fleet.snapshot_timeout_wall_s


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        pytest.param(CASES["sites-beside"], "ClusterIP", id="sites-beside"),
        pytest.param(CASES["three-regions"], "LoadBalancer", id="sites-elsewhere"),
        pytest.param(demo(OUTSIDE, "fleet.kind=static"), "LoadBalancer", id="static"),
        pytest.param(demo(OUTSIDE, service="NodePort"), "NodePort", id="as-told"),
    ],
)
def test_the_gates_service_reaches_as_far_as_its_sites_are(request_, kind):
    service = of("Service", request_)
    assert service["spec"]["type"] == kind
    labels = of("StatefulSet", request_)["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    (port,) = service["spec"]["ports"]
    (inner,) = container(request_)["ports"]
    assert port["targetPort"] == inner["name"]
    assert port["port"] == inner["containerPort"] == 8443


@pytest.mark.parametrize(("port", "low"), [(443, True), (8443, False)])
def test_a_port_of_the_system_is_opened_to_a_user_that_is_not_root(port, low):
    request = demo(f"gate.address=gate.example.org:{port}")
    context = of("StatefulSet", request)["spec"]["template"]["spec"]["securityContext"]
    assert ("sysctls" in context) is low


def test_without_sites_elsewhere_there_is_no_gate_and_no_probe_of_it():
    kinds = {document["kind"] for document in documents(CASES["all-in-one-pod"])}
    assert kinds == {"ConfigMap", "PersistentVolumeClaim", "ServiceAccount", "StatefulSet"}
    assert not {"ports", "readinessProbe"} & container(CASES["all-in-one-pod"]).keys()


def allowed(request):
    return {
        (resource, verb)
        for document in documents(request)
        if document["kind"] == "Role"
        for rule in document["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_coordinator_may_read_no_secret_and_only_where_its_sites_are():
    for name, request in CASES.items():
        may = allowed(request)
        assert {verb for what, verb in may if what == "secrets"} <= {"create", "patch", "delete"}
        assert not {what for what, _ in may} - {
            "pods", "secrets", "supernodepools", "supernodepools/scale",
        }, name  # fmt: skip
    assert allowed(CASES["three-regions"]) == set(), "it starts nothing in its own cluster"
    assert ("supernodepools/scale", "patch") not in allowed(CASES["three-regions-at-spp-tx"])
    assert ("pods", "create") in allowed(CASES["three-regions-at-spp-tx"])


def test_what_a_run_may_do_is_what_the_shipped_role_says():
    both = demo(*BESIDE, POOL, INSIDE)
    (role,) = yaml.safe_load_all((HERE / "deploy/run-role.yaml").read_text(encoding="utf-8"))
    assert allowed(both) == {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_a_federation_for_sites_can_be_built_and_has_nobody_in_it():
    given = of("Federation", CASES["sites-beside"])
    given["metadata"]["uid"] = UID  # as the API server gives it
    assert problems(Federation.of(given)) == ()
    (pool,) = Federation.of(given).spec.supernodes.pools
    assert (pool.name, pool.replicas, pool.gpu.count) == ("duck", 0, 2)
    workloads = {r.name: child for r, child in children(given).items() if r.kind == "StatefulSet"}
    workload = workloads["sites-supernode-duck"]
    (site,) = workload["spec"]["template"]["spec"]["containers"]
    assert site["command"][-2:] == ["exec uncurtail site join --stay", "sh"]
    assert site["envFrom"] == [{"secretRef": {"name": "sites-supernode-duck-session"}}]
    assert "livenessProbe" not in site
    assert site["resources"]["limits"]["nvidia.com/gpu"] in (2, "2")


def test_one_site_that_asks_restricts_the_pods_of_its_federation():
    asks = "sites.duck.kubernetes={federation='sites', pool='duck', pod_security='restricted'}"
    other = "sites.solar.kubernetes={federation='sites', pool='solar'}"
    given = of("Federation", demo("fleet.kind=kubernetes", *BESIDE, asks, other, INSIDE))
    assert given["spec"]["podSecurity"] == "restricted"
    given["metadata"] |= {"uid": UID, "generation": 1}
    made = [c for ref, c in children(given).items() if ref.name.startswith("sites-supernode-")]
    pods = [c["spec"]["template"]["spec"] for c in made if c["kind"] == "StatefulSet"]
    assert len(pods) == 2
    for pod in pods:
        (site,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert site["securityContext"]["readOnlyRootFilesystem"] is True
        home = next(each["value"] for each in site["env"] if each["name"] == "HOME")
        assert home in {mount["mountPath"] for mount in site["volumeMounts"]}


def test_a_federation_for_sites_is_as_the_shipped_example():
    example = yaml.safe_load((HERE / "deploy/sites.yaml").read_text(encoding="utf-8"))
    pool = "sites.duck.kubernetes={federation='sites', pool='north', gpus=4}"
    given = of("Federation", demo(*BESIDE, pool, INSIDE))
    gpus = [each["spec"]["supernodes"]["pools"][0].pop("gpu") for each in (example, given)]
    assert given["spec"] == example["spec"]
    assert [gpu["count"] for gpu in gpus] == [4, 4]


def test_a_token_of_the_cluster_is_given_only_to_who_needs_it():
    def automounted(name):
        spec = of("StatefulSet", CASES[name])["spec"]["template"]["spec"]
        return spec["automountServiceAccountToken"]

    assert automounted("sites-beside") is True
    assert automounted("three-regions") is automounted("all-in-one-pod") is False


def test_each_namespace_of_a_cluster_has_its_own_role_for_the_same_account():
    other = "sites.solar.kubernetes={image='u:1', namespace='sun'}"
    request = demo(*PLACES, other, INSIDE)
    roles = [d["metadata"]["namespace"] for d in documents(request) if d["kind"] == "Role"]
    assert sorted(roles) == ["default", "sun"]
    for binding in (d for d in documents(request) if d["kind"] == "RoleBinding"):
        (subject,) = binding["subjects"]
        assert subject["namespace"] == "default"
    assert [d["metadata"]["name"] for d in documents(request) if d["kind"] == "Namespace"] == [
        "sun"
    ]


REFUSED = [
    pytest.param(PLACES, "set it to uncurtail-demo-gate.default.svc:8443", id="no-gate"),
    pytest.param(
        ("fleet.kind=static",), "need gate.address: set it to HOST:PORT, as their", id="no-gate-out"
    ),
    pytest.param(
        ("fleet.kind=static", INSIDE), "has a meaning in this cluster alone", id="gate-inside"
    ),
    pytest.param(
        (*PLACES, "gate.address=other.default.svc:8443"),
        "is not the Service here: set uncurtail-demo-gate.default.svc:8443",
        id="another-service",
    ),
    pytest.param(("store.url=file:///data",), "leave it out (the run folder is", id="file-store"),
    pytest.param(
        (*CSV, "energy.path=mci.csv"), "copy it to the claim (kubectl cp)", id="csv"
    ),
    pytest.param(
        ("data.source=files", "data.files=['a/*.txt']"), "data.files.0 = 'a/*.txt' is", id="text"
    ),
    pytest.param(
        ("footprint.price_path=price.csv",), "footprint.price_path = 'price.csv' is", id="price"
    ),
    pytest.param(
        ("energy.prometheus_url=http://localhost:9090",), "energy.prometheus_url", id="prometheus"
    ),
    pytest.param(
        ("flower.superlink=127.0.0.1:9", "flower.superlink_ca=/runs/ca.crt"),
        "is the pod itself: name the Service",
        id="loopback",
    ),
    pytest.param(('sites.duck.cuda_devices="0"',), "which has no GPUs", id="gpu"),
    pytest.param(("name=demo-",), "ends in '-'", id="name"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_what_cannot_work_in_a_pod_is_refused_with_its_remedy(settings, words):
    with pytest.raises(ConfigError) as caught:
        render(demo(*settings))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_on_the_claim_may_be_named():
    words = container(demo(*CSV, "energy.path=/runs/mci.csv"))["args"]
    assert words[-1] == "energy.path=/runs/mci.csv"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(THREE, context="ercot"), "name one of caiso-north, spp-tx, nem-sa"),
        (Request(DEMO, context="ercot"), "no site is in context ercot: leave out --context"),
    ],
)
def test_a_context_that_no_site_names_is_refused(request_, words):
    with pytest.raises(ConfigError, match=words):
        render(request_)


def test_the_command_prints_documents_and_tells_the_rest_beside_them():
    command = [sys.executable, "-m", "uncurtail", "deploy", "render", str(THREE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == render(Request(THREE)).text
    assert done.stderr.splitlines() == render(Request(THREE)).notes


if __name__ == "__main__":
    for case, asked in CASES.items():
        (GOLDEN / f"{case}.yaml").write_text(render(asked).text, encoding="utf-8")
