"""lightkube, the typed client: apply, list, watch, scale, status."""

import pytest
from lightkube import ApiError, Client, KubeConfig
from lightkube.generic_resource import create_namespaced_resource, load_in_cluster_generic_resources
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.apps_v1 import StatefulSet
from lightkube.resources.core_v1 import ConfigMap

from tests.cluster.samples import GROUP, widget, widget_crd, workload


@pytest.fixture
def client(cluster):
    config = KubeConfig.from_file(cluster.kubeconfig())
    with Client(config=config, field_manager="us") as made:
        yield made


def test_apply_and_its_conflicts(client):
    made = client.apply(StatefulSet.from_dict(workload("StatefulSet", "db", replicas=1)))
    assert made.metadata.managedFields[0].manager == "us"
    theirs = StatefulSet.from_dict(workload("StatefulSet", "db", replicas=2))
    with pytest.raises(ApiError, match="conflict") as refused:
        client.apply(theirs, field_manager="them")
    assert refused.value.status.code == 409
    after = client.apply(theirs, field_manager="them", force=True)
    assert (after.spec.replicas, after.metadata.generation) == (2, 2)


def test_list_in_pages_by_label(client):
    for index in range(5):
        labels = {"parity": "odd" if index % 2 else "even"}
        client.create(ConfigMap(metadata=ObjectMeta(name=f"m{index}", labels=labels)))
    found = client.list(ConfigMap, labels={"parity": "even"}, chunk_size=2)
    assert [thing.metadata.name for thing in found] == ["m0", "m2", "m4"]


def test_watch(client):
    client.create(ConfigMap(metadata=ObjectMeta(name="one")))
    watch = client.watch(ConfigMap, server_timeout=20)
    kind, thing = next(watch)
    assert (kind, thing.metadata.name) == ("ADDED", "one")
    watch.close()


def test_scale(client):
    client.apply(StatefulSet.from_dict(workload("StatefulSet", "db")))
    client.patch(StatefulSet.Scale, "db", {"spec": {"replicas": 3}})
    assert client.get(StatefulSet.Scale, "db").spec.replicas == 3
    assert client.get(StatefulSet, "db").spec.replicas == 3


def test_a_kind_of_its_own_with_its_status(client):
    client.create(CustomResourceDefinition.from_dict(widget_crd()))
    load_in_cluster_generic_resources(client)
    kind = create_namespaced_resource(GROUP, "v1", "Widget", "widgets")
    client.create(kind(**widget()), namespace="default")
    made = client.get(kind, "one")
    assert made.spec["replicas"] == 1
    made["status"] = {"phase": "Running"}
    assert client.replace(kind.Status(**made.to_dict())).status["phase"] == "Running"
    with pytest.raises(ApiError, match="Unsupported value"):
        client.create(kind(**widget("two", mode="odd")), namespace="default")
