"""Fetching a source's past: once, in few calls, on across interruptions, and only whole days."""

import io

import pytest
from rich.console import Console

from tests.signalserver import PASSWORD, TOKEN, USER, Fault, sawtooth, serving
from uncurtail import energyfetch
from uncurtail.adapters import clock
from uncurtail.adapters.daycache import DAY_S, DayCache, days_between, settled
from uncurtail.adapters.sources import Point
from uncurtail.adapters.traces import load_csv
from uncurtail.core.events import unix
from uncurtail.energyfetch import Request, fetch
from uncurtail.errors import UserError

NOW = unix("2026-09-22T12:00:00+00:00")
TODAY = int(NOW // DAY_S)
TOML = """
name = "tiny"
[clock]
start = "2026-09-02T00:00:00+00:00"
[sites.oslo]
preset = "duck"
region = "CAISO_NORTH"
[sites.rome]
preset = "duck"
[train]
budget_tokens = 1000
"""


@pytest.fixture
def server():
    with serving(now=lambda: NOW) as signals:
        yield signals


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WATTTIME_USERNAME", USER)
    monkeypatch.setenv("WATTTIME_PASSWORD", PASSWORD)
    monkeypatch.setenv("ELECTRICITYMAPS_TOKEN", TOKEN)
    monkeypatch.setenv("UNCURTAIL_PROMETHEUS_TOKEN", TOKEN)
    monkeypatch.setattr(clock, "wall", lambda: NOW)
    paused: list[float] = []
    monkeypatch.setattr(clock, "pause", paused.append)
    return paused


def fetched(server, out=None, **wanted):
    request = {
        "experiment": None,
        "overrides": [],
        "source": "watttime",
        "regions": ["CAISO_NORTH"],
        "at": None,
        "start": "2026-09-01",
        "end": "2026-09-11",
        "out": out,
        **wanted,
    }
    name = (
        request["source"] if request["source"] in ("electricitymaps", "prometheus") else "watttime"
    )
    request["overrides"] = [f"energy.{name}_url={server.url}", *request["overrides"]]
    return fetch(Request(**request), Console(file=io.StringIO()))


def historical(server):
    return [(r.query["start"][:10], r.query["end"][:10]) for r in server.asked("/v3/historical")]


def test_what_is_fetched_is_a_trace_that_a_run_can_take(server, tmp_path):
    out = tmp_path / "trace.csv"
    said = fetched(server, out)
    trace = load_csv(out, ["CAISO_NORTH"])["CAISO_NORTH"]
    assert len(trace.times) == 10 * 288
    assert trace.at(trace.times[77]) == pytest.approx(sawtooth(trace.times[77]))
    assert out.read_text().splitlines()[:2] == [
        "time,CAISO_NORTH",
        f"2026-09-01T00:00:00+00:00,{sawtooth(trace.times[0]):g}",
    ]
    assert said.splitlines()[-1] == (
        f"Next: uncurtail run EXPERIMENT --set energy.source=csv --set energy.path={out} "
        "--set clock.start=2026-09-01T00:00:00.000+00:00"
    )
    assert "licensed to your account" in said


def test_it_goes_into_the_users_cache_unless_said_otherwise(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = fetched(server)
    path = said.split(":")[0]
    assert path.startswith(str(tmp_path / "cache" / "uncurtail" / "energy"))
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_a_second_call_fetches_nothing_that_is_there(server, tmp_path):
    fetched(server, tmp_path / "a.csv")
    assert historical(server) == [("2026-09-01", "2026-09-10")]
    server.requests.clear()
    fetched(server, tmp_path / "b.csv")
    assert server.requests == [], "not even a login"
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    fetched(server, tmp_path / "c.csv", start="2026-08-30", end="2026-09-13")
    assert historical(server) == [("2026-08-30", "2026-08-31"), ("2026-09-11", "2026-09-12")]


def test_calls_are_no_longer_than_the_source_allows(server, tmp_path):
    fetched(server, tmp_path / "a.csv", start="2026-06-01", end="2026-09-01")
    assert historical(server) == [
        ("2026-06-01", "2026-06-30"),
        ("2026-07-01", "2026-07-30"),
        ("2026-07-31", "2026-08-29"),
        ("2026-08-30", "2026-08-31"),
    ]


def test_an_interrupted_call_goes_on_where_it_stopped(server, tmp_path, monkeypatch):
    asked = energyfetch._insist

    def interrupted(source, region, start, end):
        if start >= unix("2026-07-01T00:00:00+00:00"):
            raise KeyboardInterrupt
        return asked(source, region, start, end)

    monkeypatch.setattr(energyfetch, "_insist", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetched(server, tmp_path / "a.csv", start="2026-06-01", end="2026-08-01")
    assert not (tmp_path / "a.csv").exists()
    monkeypatch.setattr(energyfetch, "_insist", asked)
    server.requests.clear()
    fetched(server, tmp_path / "a.csv", start="2026-06-01", end="2026-08-01")
    assert historical(server) == [("2026-07-01", "2026-07-30"), ("2026-07-31", "2026-07-31")]
    assert len(load_csv(tmp_path / "a.csv", ["CAISO_NORTH"])["CAISO_NORTH"].times) == 61 * 288


def test_today_is_fetched_and_not_kept(server, tmp_path):
    wanted = {"start": "2026-09-21", "end": "2026-09-22T12:00:00+00:00"}
    fetched(server, tmp_path / "a.csv", **wanted)
    server.requests.clear()
    fetched(server, tmp_path / "b.csv", **wanted)
    assert historical(server) == [("2026-09-22", "2026-09-22")]


def test_a_damaged_day_in_the_cache_is_fetched_again(server, tmp_path):
    fetched(server, tmp_path / "a.csv")
    (day,) = (tmp_path / "cache").rglob("2026-09-04.csv")
    whole = day.read_text()
    day.write_text(whole[: len(whole) // 2] + "xx")
    server.requests.clear()
    fetched(server, tmp_path / "b.csv")
    assert historical(server) == [("2026-09-04", "2026-09-04")]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert day.read_text() == whole


def test_a_server_that_fails_for_a_while_is_asked_again(server, tmp_path, surroundings):
    server.faults += [Fault("503", "historical", times=2), Fault("429", "historical", times=1,
                      headers={"Retry-After": "7"})]  # fmt: skip
    fetched(server, tmp_path / "a.csv")
    first, second, third = surroundings
    assert 1.0 <= first <= 2.0 <= second <= 4.0
    assert third == pytest.approx(7.0, abs=1.0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("500", "historical"), r"fails \(500\): run it again, it goes on where it stopped"),
        (Fault("429", "historical", headers={"Retry-After": "9000"}),
         "no sooner than in 9000 s: run it again"),
        (Fault("404", "historical"), r"refuses \(404\)"),
        (Fault("truncated", "historical"), "broke off its answer.*run it again"),
    ],
)  # fmt: skip
def test_a_server_that_goes_on_failing_is_one_line_with_what_to_do(server, fault, message):
    server.faults.append(fault)
    with pytest.raises(UserError, match=message) as refusal:
        fetched(server)
    assert PASSWORD not in str(refusal.value)


def test_gaps_are_told_and_allowed_for(server, tmp_path):
    hole = unix("2026-09-05T00:00:00+00:00")
    server.gaps |= {hole + n * 300.0 for n in range(12)}
    out = tmp_path / "a.csv"
    said = fetched(server, out)
    assert "1 gap, 1.0 h in all: unknown there" in said
    assert "--set energy.allow_gaps=true" in said
    trace = load_csv(out, ["CAISO_NORTH"], allow_gaps=True)["CAISO_NORTH"]
    assert trace.at(hole + 1800.0) is None


def test_what_is_absurd_is_left_out(server, tmp_path):
    spike = unix("2026-09-05T00:00:00+00:00")
    server.value = lambda t: 5e4 if t == spike else 30.0
    fetched(server, tmp_path / "a.csv")
    assert "50000" not in (tmp_path / "a.csv").read_text()


def test_regions_share_their_times_and_what_one_lacks_is_left_out(server, tmp_path):
    server.allowed = ("CAISO_NORTH", "SPP_TX")
    answered, lacks = server.answer, unix("2026-09-03T00:00:00+00:00")

    def answer(request):
        server.gaps = {lacks} if request.query.get("region") == "SPP_TX" else set()
        return answered(request)

    server.answer = answer
    out = tmp_path / "a.csv"
    said = fetched(server, out, regions=["CAISO_NORTH", "SPP_TX"])
    assert "1 times are left out" in said
    assert load_csv(out, ["CAISO_NORTH", "SPP_TX"]).keys() == {"CAISO_NORTH", "SPP_TX"}


def test_an_experiment_names_regions_and_what_it_lacks_is_in_the_next_step(server, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    said = fetched(server, tmp_path / "a.csv", experiment=path, regions=[])
    assert said.splitlines()[-1] == (
        f"Next: uncurtail run {path} --set energy.source=csv "
        f"--set energy.path={tmp_path / 'a.csv'} --set sites.rome.region=CAISO_NORTH"
    )


def test_a_place_can_be_named_instead_of_a_region(server, tmp_path):
    fetched(server, tmp_path / "a.csv", regions=[], at="37.4,-122.1")
    assert (tmp_path / "a.csv").read_text().startswith("time,CAISO_NORTH\n")


def test_averages_are_fetched_by_ten_days_and_called_averages(server, tmp_path):
    out = tmp_path / "a.csv"
    said = fetched(server, out, source="electricitymaps", regions=["DE"], end="2026-09-22")
    assert len(server.asked("/v3/carbon-intensity/past-range")) == 3
    assert len(load_csv(out, ["DE"])["DE"].times) == 21 * 24
    assert "average gCO2/kWh" in said
    assert "--set energy.kind=average" in said


def test_any_prometheus_query_becomes_a_trace(server, tmp_path):
    out = tmp_path / "a.csv"
    overrides = ["energy.prometheus_query='grid{region=\"{region}\"}'"]
    fetched(server, out, source="prometheus", regions=["SPP"], overrides=overrides)
    assert len(load_csv(out, ["SPP"])["SPP"].times) == 10 * 288
    assert server.asked("/api/v1/query_range")[0].query["query"] == 'grid{region="SPP"}'


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"source": None}, "'synthetic', which needs no fetching: name another, as --source"),
        ({"source": "csv", "overrides": ["energy.path=x"]}, "'csv', which needs no fetching"),
        ({"source": "wattime"}, "energy.source = 'wattime'"),
        ({"regions": []}, "no region is named: add --region NAME"),
        ({"start": "yesterday"}, "--start yesterday: .*: write 2026-01-31 or a time with offset"),
        ({"end": "2026-08-01"}, "--start 2026-09-01.* is not before --end 2026-08-01"),
        ({"at": "here"}, "--at here: write LATITUDE,LONGITUDE"),
        ({"start": "2026-09-22T11:00:00+00:00", "end": "2026-09-22T11:01:00+00:00"},
         "has 1 values of CAISO_NORTH between"),
        ({"source": "electricitymaps", "regions": ["DE"], "at": "1,2"},
         "finds no region by place: name it with --region"),
    ],
)  # fmt: skip
def test_what_cannot_be_fetched_is_said_with_the_remedy(server, wanted, message):
    with pytest.raises(UserError, match=message):
        fetched(server, **wanted)


def test_without_credentials_it_names_the_variables(server, monkeypatch):
    monkeypatch.delenv("WATTTIME_PASSWORD")
    with pytest.raises(UserError, match="'watttime' needs WATTTIME_PASSWORD, or WATTTIME_PASSWORD"):
        fetched(server)


def test_no_secret_is_written_anywhere(server, tmp_path):
    fetched(server, tmp_path / "a.csv")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not any(secret in text for secret in (USER, PASSWORD, "token-1"))


def test_a_day_is_settled_hours_after_its_end_and_never_when_it_is_empty():
    points = [Point(0.0, 1.0)]
    assert not settled(TODAY, points, NOW)
    assert settled(TODAY - 1, points, NOW)
    assert not settled(TODAY - 1, points, TODAY * DAY_S + 3600.0)
    assert not settled(TODAY - 9, [], NOW)


def test_the_days_of_a_span_are_those_it_touches():
    assert days_between(0.0, DAY_S) == [0]
    assert days_between(DAY_S - 1.0, DAY_S + 1.0) == [0, 1]
    assert days_between(-1.0, 1.0) == [-1, 0]


def test_equal_regions_of_two_signals_do_not_share_a_cache(tmp_path):
    one = DayCache(tmp_path, ("watttime", "marginal", "http://a"), "R")
    other = DayCache(tmp_path, ("watttime", "average", "http://a"), "R")
    one.save(3, [Point(3 * DAY_S, 1.5)])
    assert one.load(3) == [Point(3 * DAY_S, 1.5)]
    assert other.load(3) is None
    assert one.load(4) is None


def test_a_source_that_answers_any_span_is_asked_by_the_year():
    days = list(range(1000))
    chunks = list(energyfetch._chunks(days, float("inf")))
    assert [len(chunk) for chunk in chunks] == [366, 366, 268]
    assert [day for chunk in chunks for day in chunk] == days


def test_two_signals_of_one_region_have_files_of_their_own(server):
    moer = fetched(server).split(":")[0]
    aoer = fetched(server, overrides=["energy.kind=average"]).split(":")[0]
    assert moer != aoer
    assert "-marginal-" in moer
    assert "-average-" in aoer
