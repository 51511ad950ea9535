"""Runs on batteries and suns: the real loop with Vessim's battery, verified and counted again."""

import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import vessim
from rich.console import Console
from vessim.metrics import GridImportEmissions

from tests.virtual import START, Virtual, experiment, rewrite_power
from uncurtail import wiring
from uncurtail.config import Config, ConfigError
from uncurtail.core.events import unix
from uncurtail.core.planner import PlanVariant
from uncurtail.core.policy import Costs
from uncurtail.core.signals import Trace
from uncurtail.plan.compare import compare, scenario
from uncurtail.plan.own import OwnSite
from uncurtail.plan.simulate import simulate
from uncurtail.report import curves
from uncurtail.report.page import write_report
from uncurtail.report.rundata import DRAWING, RunData
from uncurtail.report.summary import write_summary
from uncurtail.report.terminal import summary_table
from uncurtail.runfolder import RunFolder
from uncurtail.verify import verify

HOUR = 3600.0
SUN_AND_BATTERY = {"solar_peak_w": 6000.0, "battery_wh": 10_000.0}
FROM_GRID = {"battery_wh": 10_000.0, "charge_from_curtailed": True}


def sites(**microgrids) -> Config:
    """Duck and windy, each with what is said; a day."""
    config = experiment(run={"duration_s": 24 * HOUR})
    kept = {
        name: site.model_dump() | {"microgrid": microgrids.get(name)}
        for name, site in config.sites.items()
        if name != "solar"
    }
    return Config.model_validate(config.model_dump() | {"sites": kept})


def played(path: Path, settings: Config, traces=None, restarts=()) -> RunFolder:
    virtual = Virtual(path, settings, traces=traces)
    for hours in restarts:
        virtual.until(unix(START) + hours * HOUR)
        virtual.restart()
    virtual.finish()
    virtual.close()
    return virtual.folder


def failing(folder: RunFolder) -> set[str]:
    return {check.name for check in verify(folder) if check.passed is False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = sites(duck=SUN_AND_BATTERY, windy=FROM_GRID)
    return played(tmp_path_factory.mktemp("own"), settings)


@pytest.fixture(scope="module")
def summary(run):
    """With the oracle's five seconds."""
    return write_summary(run)


def test_a_run_on_own_power_passes_every_check_and_trains_beyond_its_windows(run):
    assert failing(run) == set()
    data = RunData(run)
    for site in data.sites:
        window_s = sum(span.end - span.start for span in data.windows(site))
        trained_s = data.ledger.total(site=site, phase="training").duration_s
        assert trained_s > 1.2 * window_s
    duck, windy = (data.ledger.total(site=site) for site in ("duck", "windy"))
    assert duck.stored_j == 0.0
    assert duck.solar_j > duck.battery_j > 0.0
    assert windy.solar_j == 0.0
    assert windy.stored_j > windy.battery_j > 0.0
    for tally in (duck, windy):
        assert tally.clean_j <= tally.energy_j * (1.0 + 1e-9)


def test_the_loop_and_virtual_time_agree_on_where_the_power_came_from(run):
    """The simulator leaves out messages and rounds: two percent, and a few for small parts."""
    settings = wiring.read_config(run)
    start = unix(START)
    game = scenario(
        settings,
        wiring.traces(settings, start),
        start,
        PlanVariant(policy=settings.policy, round_overhead_share=0.0),
        math.inf,
        wiring.microgrids(settings, start),
    )
    game.until = start + 24 * HOUR
    outcome = simulate(game)
    ledger = RunData(run).ledger
    for site, found in outcome.sites.items():
        real, planned = ledger.total(site=site), found.energy
        assert planned.energy_j == pytest.approx(real.energy_j, rel=0.02)
        assert planned.solar_j == pytest.approx(real.solar_j, rel=0.05)
        assert planned.battery_j == pytest.approx(real.battery_j, rel=0.05)
        assert planned.stored_j == pytest.approx(real.stored_j, rel=0.02)
        assert planned.emissions_g == pytest.approx(real.emissions_g, rel=0.10)


def test_it_is_the_same_run_when_the_coordinator_is_killed_at_night_at_noon_and_in_between(
    run, tmp_path
):
    """The charge is in the series: what each battery holds goes on where it was."""
    settings = wiring.read_config(run)
    again = played(tmp_path, settings, restarts=(3, 8, 13, 18))
    assert failing(again) == set()
    first, second = RunData(run).ledger, RunData(again).ledger
    for site in settings.sites:
        left, right = first.total(site=site), second.total(site=site)
        assert right.solar_j == pytest.approx(left.solar_j, rel=0.05)
        assert right.battery_j == pytest.approx(left.battery_j, rel=0.05)


# -- Vessim's own account --

STEP_S = 2


def stepwise(times, values, end):
    """A Vessim trace of the run, each value from its time (in whole ticks) on."""
    ticks = np.round((np.array([*times, end]) - unix(START)) / STEP_S) * STEP_S
    index = pd.TimedeltaIndex(pd.to_timedelta(ticks, unit="s"))
    series = pd.Series(np.array([*values, values[-1]], dtype=float), index=index)
    return vessim.Trace(series[~series.index.duplicated(keep="last")])


def test_vessims_own_account_of_a_run_is_ours_to_a_tenth_of_a_percent(tmp_path):
    """Its environment, metric and default dispatch on what a site drew that never waits.

    Its grid is never curtailed, so nothing is spared, which Vessim's own dispatch does not know.
    """
    coal = {"preset": "coal", "microgrid": SUN_AND_BATTERY}
    settings = experiment(run={"duration_s": 24 * HOUR}, policy={"kind": "always"})
    settings = Config.model_validate(settings.model_dump() | {"sites": {"coal": coal}})
    data = RunData(played(tmp_path, settings))
    segments = data.segments
    end = segments[-1].end
    own = wiring.microgrids(settings, unix(START))["coal"]
    assert own.solar is not None
    section, sun = own.section, own.solar
    until = end + 2 * STEP_S
    environment = vessim.Environment(START, step_size=STEP_S)
    battery = vessim.SimpleBattery(
        "battery",
        capacity=section.battery_wh,
        initial_soc=section.battery_initial_soc,
        min_soc=section.battery_min_soc,
        c_rate=section.battery_c_rate,
    )
    lit = sun.times < end
    trace = data.traces["coal"]
    known = trace.times < end
    load = stepwise([s.start for s in segments], [s.power_w for s in segments], until)
    grid = stepwise(trace.times[known], trace.values[known] / 1000.0, until)
    environment.add_microgrid(
        actors=[
            vessim.Consumer("load", load),
            vessim.Producer("sun", stepwise(sun.times[lit], sun.values[lit], until)),
        ],
        dispatchables=[battery, vessim.GridConnection()],
        grid_signals={"kg_per_kwh": grid},
        name="coal",
    )
    metric = GridImportEmissions("coal", "kg_per_kwh")
    recorder = vessim.Recorder(timeseries=False, custom_metrics={"coal": metric})
    environment.add_controller(recorder)
    environment.run(until=int(end - unix(START)) // STEP_S * STEP_S)
    theirs_kwh = recorder.metrics["microgrids"]["coal"]["grid_import"] / 1000.0
    ours = data.ledger.total(site="coal")
    assert 0.0 < ours.grid_j < 0.7 * ours.energy_j
    assert ours.grid_j / 3.6e6 == pytest.approx(theirs_kwh, rel=1e-3)
    assert ours.emissions_g / 1000.0 == pytest.approx(metric.value, rel=1e-3)
    assert segments[-1].flow is not None
    assert segments[-1].flow.soc == pytest.approx(battery.soc(), abs=1e-3)


# -- when the grid is unknown --


def dark(settings: Config) -> dict[str, Trace]:
    """Grids of which nobody knows anything."""
    start = unix(START)
    times = start + np.arange(0.0, 30 * HOUR, 300.0)
    nothing = Trace(times, np.full(len(times), math.nan), start + 30 * HOUR)
    return dict.fromkeys(settings.sites, nothing)


def test_while_the_grid_is_unknown_a_site_trains_only_on_what_carries_all_of_it(tmp_path):
    settings = sites(duck=SUN_AND_BATTERY, windy=FROM_GRID)
    folder = played(tmp_path, settings, traces=dark(settings))
    assert failing(folder) == set()
    ledger = RunData(folder).ledger
    training = ledger.total(site="duck", phase="training")
    assert training.duration_s > 4 * HOUR
    assert training.grid_j <= 1e-3 * training.energy_j
    assert ledger.total(site="windy").stored_j == 0.0, "an unknown grid charges nothing"
    assert ledger.total().emissions_g == 0.0


def test_a_battery_that_cannot_give_enough_at_once_carries_nobody(tmp_path):
    weak = {"battery_wh": 10_000.0, "battery_initial_soc": 1.0, "battery_c_rate": 0.2}
    settings = sites(duck=weak, windy=weak)
    folder = played(tmp_path, settings, traces=dark(settings))
    assert RunData(folder).ledger.total(phase="training").duration_s == 0.0
    assert failing(folder) == set()


def test_a_site_does_not_flap_through_a_day_of_clouds(run):
    starts = {site: RunData(run).provisions(site) for site in ("duck", "windy")}
    assert max(starts.values()) <= 4


# -- mutations --


def of(rows, site, column, least=100.0, phase="training"):
    """The first row of a phase in which there is more than so much of this."""
    return next(
        row
        for row in rows
        if row["site"] == site and row["phase"] == phase and float(row[column] or 0) > least
    )


def scale(site, column, factor) -> Callable[[list[dict[str, str]]], None]:
    def change(rows):
        row = of(rows, site, column, least=0.1)
        row[column] = str(float(row[column]) * factor)

    return change


def forget(rows):
    of(rows, "duck", "solar_w")["soc"] = ""


def double_the_sun(rows):
    """A watt more of sun and a watt less of the battery: only the sun's own series tells."""
    row = of(rows, "duck", "solar_w")
    row["solar_w"] = str(float(row["solar_w"]) + 100.0)
    row["grid_charge_w"] = str(float(row["grid_charge_w"]) + 100.0)


def charge_at_any_time(rows):
    row = of(rows, "duck", "battery_w")
    row["grid_power_w"] = row["grid_charge_w"] = "50"


MUTATIONS = [
    pytest.param(scale("duck", "solar_w", 0.5), "own-power", "sun, battery and grid give",
                 id="less-sun"),
    pytest.param(scale("duck", "battery_w", 1.01), "own-power", "should hold",
                 id="more-battery"),
    pytest.param(scale("windy", "soc", 1.001), "own-power", "should hold",
                 id="another-charge"),
    pytest.param(scale("windy", "soc", 2.5), "own-power", "cannot be", id="too-full"),
    pytest.param(scale("windy", "grid_charge_w", 3.0), "own-power", "is above 5000 W",
                 id="too-fast"),
    pytest.param(scale("windy", "grid_power_w", 0.9), "energy-adds-up", "by power.csv",
                 id="less-grid"),
    pytest.param(forget, "energy-adds-up", "has no charge", id="no-charge"),
    pytest.param(double_the_sun, "own-power", "of sun are spent", id="sun-that-never-shone"),
    pytest.param(charge_at_any_time, "own-power", "the grid charges",
                 id="charged-from-a-dirty-grid"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "broken", "said"), MUTATIONS)
def test_a_changed_row_fails_by_name(tmp_path, run, change, broken, said):
    folder = RunFolder(shutil.copytree(run.path, tmp_path / run.path.name))
    rewrite_power(folder, change)
    assert broken in failing(folder)
    assert said in {check.name: check.detail for check in verify(folder)}[broken]


def test_training_on_the_grid_beyond_a_window_fails_though_there_is_a_battery(tmp_path, run):
    folder = RunFolder(shutil.copytree(run.path, tmp_path / run.path.name))

    def swap(rows):
        for row in rows:
            if row["site"] == "windy":
                row["battery_w"], row["grid_power_w"] = "0", row["power_w"]

    rewrite_power(folder, swap)
    assert {"only-in-windows", "own-power"} <= failing(folder)


# -- the sun from a file --


def write_sun(path: Path, first: float, watts: float) -> str:
    stamps = pd.to_datetime(first + 600.0 * np.arange(200), unit="s", utc=True)
    rows = [f"{stamp.isoformat()},{watts}" for stamp in stamps]
    path.write_text("\n".join(["time,roof", *rows]) + "\n")
    return str(path)


def test_a_file_in_watts_is_the_sun_and_one_that_does_not_cover_the_run_is_refused(tmp_path):
    body = {"solar_peak_w": 3000.0, "solar_column": "roof"}
    good = write_sun(tmp_path / "good.csv", unix(START), 2500.0)
    found = wiring.microgrids(sites(duck=body | {"solar_path": good}), unix(START))
    assert list(found) == ["duck"]
    assert found["duck"].solar_w(unix(START) + 900.0) == 2500.0
    late = write_sun(tmp_path / "late.csv", unix(START) + 86400.0, 2500.0)
    with pytest.raises(ConfigError, match=r"sites\.duck\.microgrid: .* set clock\.start"):
        wiring.microgrids(sites(duck=body | {"solar_path": late}), unix(START))
    bright = write_sun(tmp_path / "bright.csv", unix(START), 3001.0)
    with pytest.raises(ConfigError, match=r"outside 0\.\.3000 W"):
        wiring.microgrids(sites(duck=body | {"solar_path": bright}), unix(START))


# -- what is told --


def test_the_report_says_where_the_power_came_from(run, summary):
    (numbers,) = summary["policies"].values()
    told = numbers["microgrids"]
    tally = RunData(run).ledger.total(site="duck")
    assert told["duck"]["solar_kwh"] == pytest.approx(tally.solar_j / 3.6e6)
    assert told["windy"]["stored_kwh"] > 1.0
    load_kwh = sum(
        kwh["solar_kwh"] + kwh["battery_kwh"] + kwh["grid_kwh"] - kwh["stored_kwh"]
        for kwh in told.values()
    )
    assert load_kwh == pytest.approx(numbers["energy_kwh"])
    page = write_report(run, summary).read_text()
    for kwh in told.values():
        assert f"<td>{kwh['battery_kwh']:,.3f}</td>" in page
    assert "Baselines have no microgrid" in page
    shown = io.StringIO()
    Console(width=120, file=shown, force_terminal=False).print(summary_table(summary, run))
    assert f"{told['duck']['solar_kwh']:.2f}" in shown.getvalue()


def test_the_footprint_counts_what_the_grid_gave(run, summary):
    (numbers,) = summary["policies"].values()
    account = summary["footprint"]["total"]
    assert account["marginal_kg"] == pytest.approx(numbers["emissions_kg"])
    assert account["energy_kwh"] == pytest.approx(numbers["energy_kwh"])
    up_h = sum(
        RunData(run).ledger.total(site=site, phase=phase).duration_s / HOUR
        for site in ("duck", "windy")
        for phase in DRAWING
    )
    assert summary["footprint"]["embodied"]["used_gpu_h"] == pytest.approx(4 * up_h)


def test_a_run_s_oracle_has_its_microgrids(summary):
    (numbers,) = summary["policies"].values()
    assert 0.0 <= summary["oracle"]["emissions_kg"] <= numbers["emissions_kg"]


@pytest.mark.parametrize("limit", [{"max_kg": 0.05}, {"max_eur": 0.5}], ids=["kg", "eur"])
def test_a_budget_counts_the_grid_s_part_alone(tmp_path, limit):
    """With all of its load from the sun and battery a site spends nothing of a budget."""
    settings = experiment(run={"duration_s": 24 * HOUR})
    site = {"preset": "coal", "price_eur_per_kwh": 1.0, "microgrid": SUN_AND_BATTERY}
    changes = {"sites": {"coal": site}, "policy": {"kind": "budget", **limit}}
    settings = Config.model_validate(settings.model_dump() | changes)
    folder = played(tmp_path, settings)
    data = RunData(folder)
    assert data.ended is not None
    assert data.ended.reason == "duration"
    assert data.ledger.total().energy_j / 3.6e6 * 0.75 > 1.0, "far beyond either from this grid"
    assert failing(folder) == set()


def test_the_curve_of_emissions_ends_at_the_ledger_s(run):
    data = RunData(run)
    assert curves.emissions_kg(data)[1][-1] == pytest.approx(data.emissions_kg())


def test_in_virtual_time_a_stale_grid_neither_charges_a_battery_nor_spares_it():
    own = wiring.microgrids(sites(windy=FROM_GRID), unix(START))["windy"]
    start = unix(START)
    clean = Trace(np.array([start]), np.array([50.0]), math.inf)
    site = OwnSite(own, Costs(2024.0, 468.0, 468.0, 300.0), clean, None, 100.0)
    site.draw(start, start + 900.0, 2000.0, known=True)
    assert site.energy.battery_j == 0.0
    assert site.energy.stored_j == pytest.approx(5000.0 * 900.0)
    site.draw(start + 900.0, start + 1800.0, 2000.0, known=False)
    assert site.energy.battery_j == pytest.approx(2000.0 * 900.0)
    assert site.energy.stored_j == pytest.approx(5000.0 * 900.0)


def test_plan_says_where_each_policy_s_power_comes_from():
    settings = sites(duck=SUN_AND_BATTERY, windy=FROM_GRID)
    start = unix(START)
    traces, own = wiring.traces(settings, start), wiring.microgrids(settings, start)
    found = compare(settings, traces, start, ["threshold"], microgrids=own)
    (row,) = found.to_json()["policies"].values()
    parts = row["microgrids"]
    assert set(parts) == {"duck", "windy"}
    load_kwh = sum(
        kwh["solar_kwh"] + kwh["battery_kwh"] + kwh["grid_kwh"] - kwh["stored_kwh"]
        for kwh in parts.values()
    )
    assert load_kwh == pytest.approx(row["energy_kwh"])
    assert any(note.startswith("always on: counted without") for note in found.notes)
    bare = compare(settings, traces, start, ["threshold"])
    assert "microgrids" not in bare.to_json()["policies"]["threshold"]
    assert found.work_h > 1.2 * bare.work_h
