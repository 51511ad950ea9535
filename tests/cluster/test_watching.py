"""Watches: what they see, how they end, and what happens to one that comes too late."""

import httpx
import pytest

from tests.cluster.clients import MERGE
from tests.cluster.samples import CONFIG_MAPS, config_map


def kinds_and_names(events, count):
    seen = []
    for _ in range(count):
        event = next(events)
        seen.append((event["type"], event["object"]["metadata"].get("name")))
    return seen


def version(admin):
    return admin.done(admin.get(CONFIG_MAPS))["metadata"]["resourceVersion"]


def test_a_watch_goes_on_from_the_version_that_it_names(admin):
    admin.done(admin.post(CONFIG_MAPS, config_map("before")))
    since = version(admin)
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    with admin.watch(CONFIG_MAPS, resourceVersion=since) as events:
        admin.done(admin.patch(f"{CONFIG_MAPS}/one", {"data": {"a": "1"}}, MERGE))
        admin.done(admin.delete(f"{CONFIG_MAPS}/one"))
        assert kinds_and_names(events, 3) == [
            ("ADDED", "one"),
            ("MODIFIED", "one"),
            ("DELETED", "one"),
        ]


def test_a_watch_without_a_version_begins_with_what_is_there(admin):
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    with admin.watch(CONFIG_MAPS) as events:
        assert kinds_and_names(events, 1) == [("ADDED", "one")]


def test_what_no_longer_matches_is_deleted_for_the_watch(admin):
    since = version(admin)
    labelled = {"metadata": {"labels": {"a": "b"}}}
    with admin.watch(CONFIG_MAPS, resourceVersion=since, labelSelector="a=b") as events:
        admin.done(admin.post(CONFIG_MAPS, config_map("one")))
        admin.done(admin.patch(f"{CONFIG_MAPS}/one", labelled, MERGE))
        labelled["metadata"]["labels"]["a"] = "c"
        admin.done(admin.patch(f"{CONFIG_MAPS}/one", labelled, MERGE))
        assert kinds_and_names(events, 2) == [("ADDED", "one"), ("DELETED", "one")]


def test_a_watch_ends_when_its_time_is_over_with_a_bookmark(admin):
    query = {"resourceVersion": version(admin), "timeoutSeconds": 1}
    with admin.watch(CONFIG_MAPS, allowWatchBookmarks="true", **query) as events:
        seen = list(events)
    assert [event["type"] for event in seen] == ["BOOKMARK"]
    assert seen[0]["object"]["metadata"]["resourceVersion"] == query["resourceVersion"]


def test_a_watch_from_before_compaction_is_gone(cluster, admin):
    since = version(admin)
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    cluster.forget_history()
    with admin.watch(CONFIG_MAPS, resourceVersion=since) as events:
        (event,) = events
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


def test_a_watch_that_is_cut_breaks_off(cluster, admin):
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    with admin.watch(CONFIG_MAPS) as events:
        next(events)
        cluster.cut_watches()
        with pytest.raises(httpx.TransportError):
            next(events)
    assert version(admin)


def test_a_server_comes_back_with_its_objects_or_without(cluster, admin):
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    since = version(admin)
    cluster.restart_server()
    assert len(admin.list(CONFIG_MAPS)) == 1
    assert version(admin) == since
    cluster.restart_server(with_store=False)
    assert admin.list(CONFIG_MAPS) == []
    admin.done(admin.post(CONFIG_MAPS, config_map("two")))
    with admin.watch(CONFIG_MAPS, resourceVersion=since) as events:
        assert next(events)["object"]["code"] == 410
