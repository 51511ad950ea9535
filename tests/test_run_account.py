"""What a run folder's report says beyond its ledger: the best possible, and the whole footprint."""

import json

import pytest

from tests.runmaker import SiteSpec, Spec, make_run
from tests.test_report import FLAT, policy, terminal
from uncurtail.core.events import iso
from uncurtail.report.footprintrows import footprint_rows
from uncurtail.report.page import write_report
from uncurtail.report.rundata import RunData
from uncurtail.report.style import percent
from uncurtail.report.summary import summarise, write_summary

# The other half of the sky: dirty for three hours, then clean.
LATE = SiteSpec("late", ((0, 600), (178, 600), (179, 20), (360, 20)))


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "flat-1", Spec(minutes=260, sites=(FLAT,)))


def declare(folder, **section):
    """Declare a footprint in the run's resolved config."""
    body = json.loads(folder.resolved.read_text())
    body["footprint"] = section
    folder.resolved.write_text(json.dumps(body))


def copied(tmp_path, spec):
    return make_run(tmp_path / "copy-1", spec)


# -- the best possible --


def test_a_run_that_could_hardly_do_better_is_near_its_oracle(flat):
    """One site, one window: the run loses its idling and a minute of draining at 500 g."""
    summary = summarise(flat)
    least_kg, emitted_kg = summary["oracle"]["emissions_kg"], policy(summary)["emissions_kg"]
    train_min = 111  # at 50 g, after ten minutes of starting at 468 W, also at 50 g
    by_hand_kg = (train_min * 2024 + 10 * 468) * 50 / 60 / 1e6
    assert least_kg == pytest.approx(by_hand_kg, rel=0.02)
    assert policy(summary)["gap_to_oracle"] == pytest.approx(emitted_kg / least_kg - 1)
    assert summary["oracle"]["makespan_h"] <= policy(summary)["makespan_h"] + 0.05


def test_a_run_that_goes_on_has_no_oracle_yet(tmp_path):
    summary = summarise(make_run(tmp_path / "on-1", Spec(minutes=200, ended=False)))
    assert summary["oracle"] == {"emissions_kg": None, "makespan_h": None}
    assert policy(summary)["gap_to_oracle"] is None


def test_energy_of_unknown_intensity_leaves_the_gap_unknown(tmp_path):
    summary = summarise(make_run(tmp_path / "hole-1"))
    assert policy(summary)["energy_kwh"] > 0
    assert summary["oracle"]["emissions_kg"] > 0
    assert policy(summary)["gap_to_oracle"] is None


def test_the_terminal_and_the_page_say_the_best_possible(flat):
    summary = write_summary(flat)
    write_report(flat, summary)
    more = f"{percent(policy(summary)['gap_to_oracle'])} more"
    assert more in terminal(flat)
    assert more in flat.report.read_text()


# -- the footprint --


def test_at_the_defaults_the_account_is_the_ledgers(flat):
    summary = summarise(flat)
    account = summary["footprint"]
    assert account["basis"] == "marginal"
    assert account["total"]["energy_kwh"] == pytest.approx(policy(summary)["energy_kwh"])
    assert account["total"]["marginal_kg"] == pytest.approx(policy(summary)["emissions_kg"])
    assert account["total"]["measured_share"] == 0.0
    assert account["counterfactuals"]["alone_kg"] == pytest.approx(summary["baselines"])
    assert account["counterfactuals"]["run_now"]["kg"] == pytest.approx(
        summary["baselines"]["flat"]
    )
    assert (account["total"]["average_kg"], account["total"]["cost"]) == (None, None)
    assert account["notes"] == []
    phases = account["sites"]["flat"]["phases"]
    assert list(phases) == ["provisioning", "idle", "training", "draining"]
    parts = sum(phase["marginal_kg"] for phase in phases.values())
    assert parts == pytest.approx(account["total"]["marginal_kg"])


def test_gpus_are_counted_while_up_and_while_reserved_and_enter_the_sci(flat):
    summary = summarise(flat)
    made = summary["footprint"]["embodied"]
    up_h = (10 + 115 + 1) / 60  # starting, training with two gaps of two minutes, draining
    run = RunData(flat)
    assert run.start is not None
    assert run.end is not None
    assert made["used_gpu_h"] == pytest.approx(4 * up_h)
    assert made["reserved_gpu_h"] == pytest.approx(4 * (run.end - run.start) / 3600)
    emitted_kg = policy(summary)["emissions_kg"]
    for way in ("used", "reserved"):
        sci = summary["footprint"]["sci_kg_per_million_tokens"][way]
        expected = (emitted_kg + made[f"{way}_kg"]) / (summary["tokens"] / 1e6)
        assert sci == pytest.approx(expected, rel=1e-4)  # the network adds next to nothing


def test_all_sites_at_once_is_told_where_there_are_several(tmp_path, flat):
    both = summarise(make_run(tmp_path / "two-1", Spec(minutes=300, sites=(FLAT, LATE))))
    other = both["footprint"]["counterfactuals"]
    assert min(other["alone_kg"].values()) < other["all_on_kg"]
    assert other["run_now"]["site"] == "flat"
    assert summarise(flat)["footprint"]["counterfactuals"]["all_on_kg"] is None


def write_trace(path, start, rows, column="flat"):
    lines = [f"time,{column}", *(f"{iso(start + minute * 60)},{value}" for minute, value in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_declared_files_add_the_other_signal_the_price_and_measured_power(tmp_path):
    folder = copied(tmp_path, Spec(minutes=260, sites=(FLAT,)))
    start = RunData(folder).start
    hours = [(minute, 1) for minute in range(0, 300, 60)]
    declare(
        folder,
        pue=1.25,
        currency="USD",
        average_path=write_trace(tmp_path / "a.csv", start, [(m, 200) for m, _ in hours]),
        price_path=write_trace(tmp_path / "p.csv", start, [(m, -0.1) for m, _ in hours]),
        power_path=write_trace(tmp_path / "w.csv", start, [(m, 1000) for m, _ in hours]),
    )
    account = summarise(folder)["footprint"]
    up_h = (10 + 115 + 1) / 60
    kwh = up_h * 1.25
    assert account["total"]["energy_kwh"] == pytest.approx(kwh)
    assert account["total"]["measured_share"] == pytest.approx(1.0)
    assert account["total"]["average_kg"] == pytest.approx(kwh * 0.2)
    assert account["total"]["cost"] == pytest.approx(-0.1 * kwh)
    told = dict(footprint_rows(account))
    assert "100 % of it measured" in told["at the meter"]
    assert told["electricity"].endswith("USD")
    assert "average (attributional)" in told


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "no file", id="absent"),
        pytest.param("time,nobody\n2026-06-01T08:00:00+00:00,1\n2026-06-01T09:00:00+00:00,1\n",
                     "no region 'flat'", id="no-column"),
        pytest.param("time,flat\n2026-06-01T08:00:00+00:00,1\n2026-06-01T09:00:00+00:00,900\n",
                     "outside -100..100 EUR/kWh", id="per-MWh"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named_and_its_numbers_are_unknown(tmp_path, content, said):
    folder = copied(tmp_path, Spec(minutes=260, sites=(FLAT,)))
    path = tmp_path / "price.csv"
    if content is not None:
        path.write_text(content)
    declare(folder, price_path=str(path))
    account = summarise(folder)["footprint"]
    assert account["total"]["cost"] is None
    (note,) = account["notes"]
    assert said in note
    write_report(folder)
    assert said.split("'")[0] in folder.report.read_text()


def test_a_run_of_which_nothing_was_metered_has_no_footprint(tmp_path):
    folder = make_run(tmp_path / "none-1", Spec(minutes=5, ended=False, sites=(FLAT,)))
    (folder.series / "power.csv").unlink()
    assert summarise(folder)["footprint"] is None
    assert footprint_rows(None) == []
