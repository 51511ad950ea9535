"""Lists and watches that break off, go stale or are refused."""

import asyncio

import pytest

from uncurtail.adapters.kubernetes_api import Kind, KubeError
from uncurtail.operating.kinds import Key
from uncurtail.operating.mirror import Mirror
from uncurtail.operating.reflector import Reflector

KIND = Kind("Service", "v1", "services")


def thing(name, version, namespace="ml"):
    labels = {"app.kubernetes.io/instance": "fed"}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "resourceVersion": str(version),
            "labels": labels,
        }
    }


def event(kind, name, version):
    return {"type": kind, "object": thing(name, version)}


class Script:
    """Answers in order: lists, and watches that end with what is last in them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def _next(self, what):
        self.asked.append(what)
        if not self.answers:
            raise asyncio.CancelledError
        return self.answers.pop(0)

    async def list(self, path, selector):
        answer = self._next("list")
        if isinstance(answer, KubeError):
            raise answer
        return answer

    async def watch(self, path, selector, since):
        for each in self._next(since):
            if isinstance(each, KubeError):
                raise each
            yield each


@pytest.fixture
def play():
    def run(*answers, relist_s=600.0, namespace=None, mirror=None):
        script, mirror = Script(*answers), mirror or Mirror()
        changed: list[Key] = []
        made = Reflector(script, KIND, namespace, mirror, changed.append, relist_s=relist_s)

        async def go():
            with pytest.raises(asyncio.CancelledError):
                await made.run()

        asyncio.run(go())
        found = [c["metadata"]["name"] for c in mirror.observed(("ml", "fed")).children]
        return script.asked, found, changed

    return run


def test_a_watch_that_breaks_goes_on_from_where_it_was(play):
    broken = KubeError("cut", unsure=True)
    asked, found, changed = play(
        ([thing("a", 3)], "5"), [event("ADDED", "b", 6), broken], [event("DELETED", "a", 8)], []
    )
    assert asked == ["list", "5", "6", "8", "8"]
    assert found == ["b"]
    assert changed == [("ml", "fed")] * 3


def test_a_version_that_is_too_old_is_answered_with_a_whole_list(play):
    gone = KubeError("too old", code=410)
    asked, found, _ = play(([thing("a", 3)], "5"), [gone], ([thing("c", 9)], "9"))
    assert asked == ["list", "5", "list", "9"]
    assert found == ["c"], "what went while nobody saw it is gone here, too"


def test_bookmarks_move_the_version_and_change_nothing(play):
    mark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "40"}}}
    asked, _, changed = play(([], "5"), [mark])
    assert asked == ["list", "5", "40"]
    assert changed == []


def test_a_list_that_is_refused_is_asked_for_again(play):
    asked, found, _ = play(KubeError("no", code=403), ([thing("a", 1)], "1"))
    assert asked == ["list", "list", "1"]
    assert found == ["a"]


def test_the_list_is_taken_again_now_and_then(play):
    asked, found, _ = play(([thing("a", 1)], "1"), [], ([], "1"), [], ([], "1"), relist_s=0.0)
    assert asked == ["list", "1", "list", "1", "list", "1"]
    assert found == []


def test_two_namespaces_that_are_watched_apart_do_not_take_away_from_each_other(play):
    mirror = Mirror()
    play(([thing("a", 1)], "1"), namespace="ml", mirror=mirror)
    _, found, changed = play(([thing("b", 2, "lab")], "2"), namespace="lab", mirror=mirror)
    assert (found, changed) == (["a"], [("lab", "fed")])
