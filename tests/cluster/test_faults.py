"""Faults strike the requests that they are planned for, and no others."""

import socket

import httpx
import pytest

from tests.cluster.clients import MERGE
from tests.cluster.cluster import Cluster
from tests.cluster.faults import BROKEN, CONFLICT, TOO_MANY, LoseAnswer, Outrun, Slow
from tests.cluster.samples import CONFIG_MAPS, config_map

ONE = f"{CONFIG_MAPS}/one"


def test_the_third_write_is_a_conflict(cluster, admin):
    cluster.faults.plan(CONFLICT, plural="configmaps", after=2)
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    codes = [admin.patch(ONE, {"data": {"a": str(n)}}, MERGE).status_code for n in range(3)]
    assert codes == [200, 409, 200]
    assert admin.done(admin.get(ONE))["data"] == {"a": "2"}


def test_who_is_outrun_has_a_conflict_if_he_named_a_version(cluster, admin):
    made = admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    cluster.faults.plan(Outrun(), times=2)
    assert admin.put(ONE, {**made, "data": {"a": "1"}}).status_code == 409
    admin.done(admin.patch(ONE, {"data": {"a": "2"}}, MERGE))


def test_errors_last_as_often_as_they_are_planned(cluster, admin):
    cluster.faults.plan(BROKEN, verbs=frozenset({"list"}), times=2)
    assert [admin.get(CONFIG_MAPS).status_code for _ in range(3)] == [500, 500, 200]


def test_too_many_requests_say_when_to_come_back(cluster, admin):
    cluster.faults.plan(TOO_MANY)
    answer = admin.post(CONFIG_MAPS, config_map("one"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


def test_a_lost_answer_is_of_a_write_that_was_done(cluster, admin):
    cluster.faults.plan(LoseAnswer())
    with pytest.raises(httpx.TransportError):
        admin.post(CONFIG_MAPS, config_map("one"))
    assert admin.get(ONE).status_code == 200


def test_a_slow_answer_comes_in_the_end(cluster, admin):
    plan = cluster.faults.plan(Slow(0.2))
    admin.done(admin.post(CONFIG_MAPS, config_map("one")))
    assert plan.seen == 1


def test_a_server_that_stops_also_leaves_those_who_still_shake_hands(cluster):
    with socket.create_connection(("127.0.0.1", cluster.server.port), timeout=5) as early:
        cluster.call(lambda api: None)  # by now it has been let in, and is asked for its first word
        cluster.restart_server()
        assert early.recv(1) == b""


class Broken:
    def step(self, api):
        raise LookupError("a mistake of ours")


def test_a_mistake_in_the_cluster_itself_is_no_silent_wait(tmp_path):
    made = Cluster(tmp_path, parts=[Broken()])
    made.start()
    with pytest.raises(LookupError, match="of ours"):
        made.wait_until(lambda api: False)
    with pytest.raises(LookupError, match="of ours"):
        made.stop()
