"""Prometheus: a query a region, sample times, and queries that do not yield one series."""

import pytest

from tests.signalserver import PASSWORD, TOKEN, USER, sawtooth, serving
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.prometheus import Prometheus

NOON = 1_790_078_523.0
QUERY = 'grid_g_per_kwh{region="{region}"}'


@pytest.fixture
def server():
    with serving(now=lambda: NOON) as signals:
        yield signals


@pytest.fixture
def prometheus(server):
    return Prometheus(server.url, QUERY, credentials=TOKEN)


def test_a_value_is_as_old_as_its_sample(prometheus, server):
    sample = NOON // 15 * 15
    point = prometheus.latest("SPP")
    assert (point.t, point.value) == (sample, sawtooth(sample))
    asked = [request.query["query"] for request in server.asked("/api/v1/query")]
    selector = 'grid_g_per_kwh{region="SPP"}'
    assert asked == [selector, f"timestamp({selector})"]


def test_a_token_or_an_account_opens_it_and_nothing_is_refused_with_the_remedy(server):
    Prometheus(server.url, QUERY, credentials=(USER, PASSWORD)).latest("SPP")
    with pytest.raises(SourceError, match=r"401.*check UNCURTAIL_PROMETHEUS_TOKEN"):
        Prometheus(server.url, QUERY).latest("SPP")


def test_each_site_may_have_a_query_of_its_own(server):
    queries = {"oslo": "sum(node_power_watts)", "rome": "bad("}
    prometheus = Prometheus(server.url, queries, credentials=TOKEN)
    assert prometheus.latest("oslo").t == NOON // 15 * 15
    assert server.requests[0].query["query"] == "sum(node_power_watts)"
    with pytest.raises(SourceError, match="parse error"):
        prometheus.latest("rome")


@pytest.mark.parametrize(("query", "found"), [("none", "no"), ("two", "2")])
def test_a_query_must_yield_one_series(prometheus, query, found):
    with pytest.raises(SourceError, match=f"has {found} series for {query}: write a query"):
        prometheus.instant(query)


def test_a_query_that_is_wrong_is_answered_with_prometheus_own_words(prometheus):
    with pytest.raises(SourceError, match=r"refuses \(400\): parse error"):
        prometheus.instant("bad(")


def test_a_range_is_asked_for_by_step_and_none_is_no_point(prometheus):
    points = prometheus.range("x", NOON - 900.0, NOON, 300.0)
    assert [point.t for point in points] == [NOON - 900, NOON - 600, NOON - 300, NOON]
    assert [point.value for point in points] == [sawtooth(point.t) for point in points]
    assert prometheus.history("SPP", NOON + 600.0, NOON + 900.0) == []
    assert prometheus.forecast("SPP", NOON) is None
