"""The newer word holds, whichever comes last; a list tells what has gone."""

from uncurtail.operating.mirror import Mirror
from uncurtail.operator.observed import Ref, ref_of


def thing(name="a", version=1, fed="fed", namespace="ml", **labels):
    owner = {"kind": "Federation", "name": fed, "uid": "u", "controller": True}
    meta = {"name": name, "namespace": namespace, "resourceVersion": str(version)}
    return {"metadata": {**meta, "labels": labels, "ownerReferences": [owner] if fed else []}}


def children(mirror, fed="fed"):
    return [ref_of(child) for child in mirror.observed(("ml", fed)).children]


def test_an_answer_is_not_undone_by_older_news():
    mirror = Mirror()
    assert mirror.take("Service", thing(version=9)) == ("ml", "fed")
    assert mirror.take("Service", thing(version=8, late="yes")) is None
    assert mirror.take("Service", thing(version=9)) is None, "an echo is no news"
    assert mirror.drop("Service", thing(version=7)) is None, "the end of an earlier one"
    assert children(mirror) == [Ref("Service", "a")]
    assert mirror.drop("Service", thing(version=10)) == ("ml", "fed")
    assert children(mirror) == []


def test_a_list_takes_away_what_it_lacks_and_names_whose_it_was():
    mirror = Mirror()
    mirror.take("Service", thing("a"))
    mirror.take("Service", thing("b", fed="other"))
    mirror.take("Secret", thing("c"))
    changed = mirror.replace("Service", [thing("a")], mirror.mark())
    assert changed == {("ml", "other")}
    assert children(mirror) == [Ref("Secret", "c"), Ref("Service", "a")]


def test_a_list_of_one_namespace_tells_nothing_of_another():
    mirror = Mirror()
    mirror.replace("Pod", [thing("a")], mirror.mark(), "ml")
    mirror.replace("Pod", [thing("b", namespace="lab")], mirror.mark(), "lab")
    mirror.replace("Pod", [], mirror.mark(), "lab")
    assert len(mirror.observed(("ml", "fed")).pods) == 1, "would be stopped without a drain"
    assert mirror.observed(("lab", "fed")).pods == ()


def test_a_list_does_not_undo_what_was_written_while_it_was_on_its_way():
    mirror = Mirror()
    mirror.take("Service", thing("a", 1))
    since = mirror.mark()
    mirror.take("Service", thing("a", 5, new="yes"))
    mirror.take("Service", thing("b", 6))
    mirror.replace("Service", [thing("a", 1)], since)
    found = mirror.find("Service", "ml", "a")
    assert found is not None
    assert found["metadata"]["labels"] == {"new": "yes"}
    assert children(mirror) == [Ref("Service", "a"), Ref("Service", "b")]


def test_after_a_restored_backup_the_list_holds_though_its_versions_are_lower():
    mirror = Mirror()
    mirror.take("Service", thing("a", 100))
    assert mirror.replace("Service", [thing("a", 3)], mirror.mark()) == {("ml", "fed")}
    found = mirror.find("Service", "ml", "a")
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "3"


def test_whose_an_object_is_is_told_by_its_owner_else_by_its_labels():
    mirror = Mirror()
    mirror.take("Pod", thing("p", fed="", **{"app.kubernetes.io/instance": "fed"}))
    mirror.take("Pod", thing("q", fed=""))
    mirror.take("Service", thing("theirs", fed=""), ("ml", "fed"))
    seen = mirror.observed(("ml", "fed"))
    assert [pod["metadata"]["name"] for pod in seen.pods] == ["p"]
    assert children(mirror) == [Ref("Service", "theirs")]
