import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from tests.runmaker import SiteSpec, Spec, make_run
from uncurtail.core import events as ev
from uncurtail.report.figures import write_figures
from uncurtail.report.page import write_report
from uncurtail.report.style import count, duration, mass, number, percent
from uncurtail.report.summary import summarise, write_summary
from uncurtail.report.terminal import summary_table
from uncurtail.report.words import story
from uncurtail.runfolder import Journal, RunFolder

FIGURES = ["emissions.png", "loss.png", "power.png", "windows.png"]

# Read every 5 minutes: 500 g, from 1:00 on 50 g, from 3:05 on 500 g again. So: provisioning
# 60-70, training 70-115, 117-162 and 164-185 (rounds of 45 minutes, 2 to merge), draining 185-186,
# last commit at 188; a stop finds everybody gone at 240.
FLAT = SiteSpec("flat", ((0, 500), (59, 500), (60, 50), (180, 50), (181, 500)))
TRAIN_MIN, IDLE_MIN = 45 + 45 + 21, 2 + 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "demo-1")


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "flat-1", Spec(minutes=260, sites=(FLAT,)))


def policy(summary):
    (numbers,) = summary["policies"].values()
    return numbers


def terminal(folder):
    out = io.StringIO()
    Console(file=out, width=100).print(summary_table(summarise(folder), folder))
    return out.getvalue()


def test_the_summary_has_the_keys_scripts_rely_on(run):
    summary = write_summary(run)
    assert json.loads(run.summary.read_text()) == summary
    assert list(summary) == [
        "policies", "oracle", "baselines", "tokens", "val_loss_first", "val_loss_last", "rounds",
        "round_overhead_share", "wall_s", "footprint",
    ]  # fmt: skip
    assert list(summary["policies"]) == ["threshold"]
    assert set(policy(summary)) == {
        "makespan_h", "energy_kwh", "emissions_kg", "in_window_share", "provisions",
        "train_site_h", "completed", "gap_to_oracle",
    }  # fmt: skip
    assert set(summary["oracle"]) == {"emissions_kg", "makespan_h"}
    assert set(summary["footprint"]) == {
        "basis", "pue", "currency", "total", "sites", "network", "embodied",
        "sci_kg_per_million_tokens", "counterfactuals", "notes",
    }  # fmt: skip
    assert list(summary["baselines"]) == ["solar", "duck", "windy"]


def test_energy_and_emissions_count_every_phase_as_by_hand(flat):
    numbers = policy(summarise(flat))
    in_window_j = 600 * 468 + IDLE_MIN * 60 * 468 + TRAIN_MIN * 60 * 2024
    draining_j = 60 * 2024
    assert numbers["energy_kwh"] == pytest.approx((in_window_j + draining_j) / 3.6e6)
    grams = (in_window_j * 50 + draining_j * 500) / 3.6e6
    assert numbers["emissions_kg"] == pytest.approx(grams / 1000)
    assert numbers["in_window_share"] == pytest.approx(in_window_j / (in_window_j + draining_j))


def test_times_counts_and_losses_are_those_of_the_events(flat):
    summary = summarise(flat)
    numbers = policy(summary)
    assert numbers["makespan_h"] == pytest.approx(188 / 60)
    assert numbers["train_site_h"] == pytest.approx(TRAIN_MIN / 60)
    assert numbers["provisions"] == 1
    assert numbers["completed"] is True
    assert summary["tokens"] == TRAIN_MIN * 4096
    assert summary["rounds"] == 3
    assert summary["wall_s"] == pytest.approx(240 * 60 / 300)
    losses = [e.val_loss for e in flat.read_events() if isinstance(e, ev.Evaluated)]
    assert (summary["val_loss_first"], summary["val_loss_last"]) == (losses[0], losses[-1])


def test_a_baseline_trains_the_same_hours_from_the_start_without_starting_or_idling(flat):
    grams = 2.024 * (1.0 * 500 + (TRAIN_MIN - 60) / 60 * 50)
    assert summarise(flat)["baselines"] == {"flat": pytest.approx(grams / 1000)}


def test_round_overhead_is_the_idle_share_of_ready_time_in_windows(flat):
    expected = IDLE_MIN / (IDLE_MIN + TRAIN_MIN)
    assert summarise(flat)["round_overhead_share"] == pytest.approx(expected)


def test_idling_outside_a_window_is_no_round_overhead(tmp_path):
    folder = make_run(tmp_path / "idle-1", Spec(minutes=5, ended=False, sites=(FLAT,)))
    start = folder.read_events()[0].t
    journal = Journal(folder)
    for minute, phase in ((10, "idle"), (40, "training")):
        t = start + minute * 60
        event = ev.SitePhase(t=t, wall_s=0, site="flat", session=1, phase=phase, power_w=1)
        journal.events([event])
    for minute, kind in ((30, ev.WindowOpened), (60, ev.WindowClosed), (90, ev.WindowClosed)):
        t = start + minute * 60
        journal.events([kind(t=t, wall_s=0, site="flat", intensity_g_per_kwh=50.0)])
    journal.close()
    assert summarise(folder)["round_overhead_share"] == pytest.approx(10 / 30)


def test_a_baseline_whose_readings_have_a_gap_is_unknown_not_zero(run):
    baselines = summarise(run)["baselines"]
    assert baselines["windy"] is None
    assert baselines["solar"] > baselines["duck"] > policy(summarise(run))["emissions_kg"]


def test_energy_at_unknown_intensity_counts_as_energy_without_emissions(run):
    unpriced = [r.segment for r in run.read_power() if r.segment.intensity_g_per_kwh is None]
    drawn_j = sum(s.power_w * (s.end - s.start) for s in unpriced)
    assert drawn_j == 60 * 2024  # windy drains for a minute when its readings stop
    write_report(run)
    assert "<td>0.034</td></tr>" in run.report.read_text()


def test_a_run_that_only_drew_at_unknown_intensity_has_no_emissions_to_tell(tmp_path):
    folder = make_run(tmp_path / "dark-1", Spec(minutes=200, ended=False, sites=(FLAT,)))
    power = folder.series / "power.csv"
    head, *rows = power.read_text().splitlines()
    power.write_text(
        "\n".join([head, *(",".join([*row.split(",")[:6], "", ""]) for row in rows), ""])
    )
    numbers = policy(summarise(folder))
    assert numbers["emissions_kg"] is None
    assert numbers["energy_kwh"] > 0
    assert "Emissions are not known" in terminal(folder)
    write_report(folder)
    write_figures(folder)


UNFINISHED = {
    "never-started": None,
    "just-started": Spec(ended=False, minutes=0),
    "waiting": Spec(ended=False, minutes=20),
    "first-round": Spec(ended=False, minutes=70),
    "under-way": Spec(ended=False, minutes=150),
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_is_told_as_far_as_it_is_known(tmp_path, name):
    spec = UNFINISHED[name]
    folder = make_run(tmp_path / "half-1", spec or Spec(ended=False, minutes=0))
    if spec is None:
        for path in (folder.events_file, *folder.series.iterdir()):
            path.unlink()
        for path in (folder.path / "commits").iterdir():
            path.unlink()
    numbers = policy(write_summary(folder))
    assert numbers["completed"] is False
    assert (numbers["makespan_h"] is None) == (name != "under-way")
    assert (numbers["energy_kwh"] is None) == (name in ("never-started", "just-started"))
    assert "has not ended" in terminal(folder)
    assert "This run has not ended" in write_report(folder).read_text()
    assert len(write_figures(folder)) == (
        0 if name in ("never-started", "just-started") else 2 if name == "waiting" else 4
    )


def test_a_run_that_goes_on_after_its_end_has_not_ended(tmp_path):
    """Ctrl-C ends a run in good order, and --resume goes on with it."""
    folder = make_run(tmp_path / "demo-1", Spec(minutes=90))
    last = folder.read_events()[-1]
    assert isinstance(last, ev.RunEnded)
    begun = ev.CoordinatorStarted(
        t=last.t,
        wall_s=last.wall_s,
        epoch=2,
        run="demo-1",
        version=last.version,
        tokens=last.tokens,
    )
    with folder.events_file.open("a", encoding="utf-8") as file:
        file.write(ev.encode(begun) + "\n")
    assert summarise(folder)["policies"]["threshold"]["completed"] is False
    assert "has not ended" in terminal(folder)


def test_alternatives_begin_once_every_site_has_been_heard_of(tmp_path):
    """A live source answers seconds after a run's start."""
    folder = make_run(tmp_path / "demo-1", Spec(minutes=90))
    known = summarise(folder)["baselines"]
    path = folder.series / "readings.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    start = lines[1].split(",")[0]
    late = start.replace(":00.000", ":02.000")
    assert late != start
    path.write_text("\n".join(line.replace(start, late, 1) for line in lines) + "\n")
    heard = summarise(folder)
    assert all(kg is not None for kg in heard["baselines"].values())
    assert heard["baselines"] == pytest.approx(known, rel=0.05)
    assert heard["footprint"]["counterfactuals"]["run_now"]["kg"] is not None


@pytest.mark.parametrize(
    ("reason", "completed"),
    [("budget", True), ("duration", True), ("user", False), ("emissions", False), ("cost", False)],
)
def test_a_run_is_complete_when_its_tokens_or_its_time_are_up(tmp_path, reason, completed):
    folder = make_run(tmp_path / "demo-1", Spec(minutes=90))
    lines = folder.events_file.read_text(encoding="utf-8").splitlines()
    last = folder.read_events()[-1]
    assert isinstance(last, ev.RunEnded)
    lines[-1] = ev.encode(replace(last, reason=reason))
    folder.events_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert summarise(folder)["policies"]["threshold"]["completed"] is completed


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run folder: it has no resolved\.json"):
        summarise(RunFolder(tmp_path))


def test_every_figure_is_drawn_as_png_and_pdf(run):
    paths = write_figures(run, formats=("png", "pdf"))
    assert sorted(path.name for path in paths if path.suffix == ".png") == FIGURES
    assert all(path.parent == run.path / "figures" for path in paths)
    for path in paths:
        magic = b"%PDF" if path.suffix == ".pdf" else b"\x89PNG"
        assert path.read_bytes().startswith(magic)


def test_the_page_loads_nothing_from_anywhere(run):
    html = write_report(run).read_text()
    tags = re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*>", _without_scripts(html))
    assert [tag for tag in tags if re.search(r"(src|href)\s*=", tag)] == []
    assert "http" not in _without_scripts(html)
    assert not re.search(r"<script[^>]*\bsrc\s*=", html)
    assert html.count("Plotly.newPlot(") >= 4


def test_the_page_says_the_numbers_of_the_summary(run):
    html = _without_scripts(write_report(run).read_text())
    assert "0.448 kg CO₂: 20 % of solar alone, 24 % of duck alone" in html
    assert "has not ended" not in html
    for text in ("10.3 kWh", "934 k", "8.05 → 3.36", "tokens in 6 rounds", "unknown"):
        assert text in html


def test_the_page_escapes_what_it_is_told(tmp_path):
    folder = make_run(tmp_path / "<b>x&-1", Spec(ended=False, minutes=60))
    journal = Journal(folder)
    evil = "</script><script>alert(1)</script>"
    journal.events([ev.Trouble(t=ev.unix(Spec.start), wall_s=0, source="redis", message=evil)])
    journal.close()
    html = write_report(folder).read_text()
    assert "<script>alert" not in html
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in html
    assert "<b>x&-1" not in html


def test_the_terminal_begins_with_the_headline_and_ends_with_the_report(run):
    write_report(run)
    lines = terminal(run).splitlines()
    assert lines[0].strip() == "0.448 kg CO₂: 20 % of solar alone, 24 % of duck alone"
    assert str(run.report) in lines[-1]
    assert len(lines) < 16
    (windy,) = [line.split() for line in lines if line.startswith("windy")]
    assert windy == ["windy", "2", "1.55", "3.40", "0.116", "kg", "unknown"]


def test_the_story_tells_lost_work_and_leaves_out_orders(tmp_path):
    spec = Spec(minutes=150, ended=False, lost=frozenset({(2, "solar")}))
    told = [text for _, _, text in story(make_run(tmp_path / "lost-1", spec).read_events())]
    assert (
        "round 2: no update from solar (late: the round is closed); 43 steps are trained again"
        in told
    )
    assert not [text for text in told if "order" in text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None, "kWh"), "unknown"),
        (number(0.0, "kWh"), "0 kWh"),
        (number(0.04149), "0.0415"),
        (number(1234567.0), "1\u202f234\u202f567"),
        (mass(0.0421), "42.1 g"),
        (mass(4.1), "4.10 kg"),
        (mass(41_000.0), "41.0 t"),
        (percent(0.031), "3.1 %"),
        (percent(0.124), "12 %"),
        (percent(0.0), "0 %"),
        (count(0), "0"),
        (count(933_888), "934 k"),
        (duration(68.8), "68.8 s"),
        (duration(7200.0), "2.00 h"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected


def test_the_maker_leaves_no_step_uncounted_and_no_segment_out(run):
    trained = [step for c in run.read_commits() for u in c.updates for step in _steps(u.intervals)]
    assert len(trained) == len(set(trained)) == len(run.read_steps())
    free = set(_steps(run.read_commits()[-1].free.intervals))
    assert free.isdisjoint(trained)
    assert len(free) + len(trained) == 2 * 120  # two data epochs were opened
    assert datetime.fromtimestamp(run.read_events()[0].t, tz=UTC).hour == 8


def _steps(intervals):
    return [(epoch, i) for epoch, start, stop in intervals for i in range(start, stop)]


def _without_scripts(html):
    return re.sub(r"<script.*?</script>", "<script></script>", html, flags=re.DOTALL)
