"""Showing windows: a table and a picture, for an experiment, a file or a preset."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from uncurtail.core.events import iso
from uncurtail.core.grids import synthetic
from uncurtail.energyshow import Request, show
from uncurtail.errors import UserError

HERE = Path(__file__).parent.parent
DEMO = HERE / "experiments" / "demo.toml"
DAY_S = 86_400.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shown(what, *, as_json=False, **wanted):
    request = {"overrides": [], "regions": [], "utc_offset_h": None, "out": None, **wanted}
    text = io.StringIO()
    console = Console(file=text, width=100)
    show(Request(Path(what), **request), console, as_json=as_json)
    return json.loads(text.getvalue()) if as_json else text.getvalue()


def csv_file(folder, days=3.0, step_s=300.0, skip=()):
    trace = synthetic("duck", seed=3, start=0.0, duration_s=days * DAY_S, step_s=step_s)
    rows = [
        f"{iso(t)},{value}"
        for t, value in zip(trace.times, trace.values, strict=True)
        if t not in skip
    ]
    path = folder / "grid.csv"
    path.write_text("time,NORTH\n" + "\n".join(rows) + "\n")
    return path


def test_the_demos_three_grids_are_a_table_and_a_picture(tmp_path):
    said = shown(DEMO)
    lines = said.splitlines()
    assert lines[0].split() == [
        "region", "share", "per", "day", "median", "mean", "q90", "longest", "days", "w/o", "mostly"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:4]] == ["duck", "solar", "windy"]
    picture = Path(said.split("Picture: ")[1].strip())
    assert picture.read_bytes().startswith(PNG)
    assert picture.is_relative_to(tmp_path / "cache"), "nothing is left where the user works"


def test_a_region_without_a_window_has_its_row_and_picture(tmp_path):
    said = shown("coal", out=tmp_path / "coal.png")
    assert said.splitlines()[1].split()[:4] == ["coal", "0", "%", "0.00"]
    assert (tmp_path / "coal.png").read_bytes().startswith(PNG)


def test_json_holds_the_same_numbers_and_draws_only_on_request(tmp_path):
    body = shown(DEMO, as_json=True, regions=["solar"])
    assert body["regions"].keys() == {"solar"}
    assert body["picture"] is None
    solar = body["regions"]["solar"]
    assert 0.3 < solar["curtailed_share"] < 0.45
    assert solar["utc_offset_h"] == 9.5
    assert len(solar["hour_profile"]) == 24
    assert solar["days"] == 365.0
    drawn = shown(DEMO, as_json=True, out=tmp_path / "x.png")
    assert drawn["picture"] == str(tmp_path / "x.png")


def test_an_experiments_own_thresholds_and_hours_count():
    usual = shown(DEMO, as_json=True)["regions"]["duck"]
    never = shown(
        DEMO,
        as_json=True,
        overrides=["policy.enter_below_g_per_kwh=1", "policy.leave_above_g_per_kwh=1"],
    )["regions"]["duck"]
    assert usual["curtailed_share"] > 0.1
    assert never["curtailed_share"] < 1e-4
    peak = max(range(24), key=usual["hour_profile"].__getitem__)
    assert 10 <= peak <= 14


def test_a_file_is_shown_for_as_long_as_it_is_with_its_gaps_unknown(tmp_path):
    path = csv_file(tmp_path, skip={n * 300 for n in range(100, 200)})
    said = shown(path, out=tmp_path / "x.png")
    assert "3 days from 1970-01-01T00:00" in said
    assert "up to 12 % of the time unknown" in said
    body = shown(path, as_json=True)
    assert body["regions"]["NORTH"]["known_share"] == pytest.approx(1 - 100 / 864)


def test_a_files_hours_can_be_made_local(tmp_path):
    path = csv_file(tmp_path, days=30.0)
    utc = shown(path, as_json=True)["regions"]["NORTH"]["hour_profile"]
    local = shown(path, as_json=True, utc_offset_h=-8.0)["regions"]["NORTH"]["hour_profile"]
    assert local[4] == pytest.approx(utc[12], abs=0.05)


@pytest.mark.parametrize(
    ("what", "wanted", "message"),
    [
        (DEMO, {"regions": ["sloar"]}, "demo has no region sloar, it has .*; did you mean solar"),
        ("none.csv", {}, "no file none.csv"),
        ("none.toml", {}, "none.toml: no such file"),
        ("ducks", {}, "ducks: no such file"),
        ("duck", {"overrides": ["policy.enter_below_g_per_kwh=-1"]},
         "policy.enter_below_g_per_kwh = -1: Input should be greater than 0"),
        ("duck", {"out": Path("/nowhere/x.png")}, "/nowhere/x.png: .*name another --out"),
        ("duck", {"out": Path("x.doc")}, "x.doc: .*name another --out, ending in .png"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_one_line_with_the_remedy(tmp_path, monkeypatch, what, wanted,
                                                          message):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        shown(what, **wanted)
    assert "\n" not in str(refusal.value)


def test_a_live_experiment_is_fetched_first(tmp_path):
    path = tmp_path / "live.toml"
    path.write_text(
        'name = "live"\n[energy]\nsource = "watttime"\n[sites.oslo]\nregion = "CAISO_NORTH"\n'
        "[train]\nbudget_tokens = 1\n"
    )
    with pytest.raises(UserError, match="is live, and this needs a trace: get one with uncurtail"):
        shown(path)


def paper_trace() -> Path | None:
    given = os.environ.get("UNCURTAIL_PAPER_DATA")
    folder = Path(given) if given else HERE.parent / "shared" / "data" / "paper"
    return folder / "mci.csv" if (folder / "mci.csv").is_file() else None


@pytest.mark.skipif(paper_trace() is None, reason="the paper's trace is not here: it is licensed")
@pytest.mark.parametrize(
    ("region", "share", "windows", "longest_min"),
    [("CAISO_NORTH", 0.336, 2, 245), ("SPP_TX", 0.378, 3, 365), ("NEM_SA", 0.581, 1, 630)],
)
def test_the_papers_trace_has_the_windows_that_were_counted_by_hand(
    region, share, windows, longest_min
):
    bands = ["policy.enter_below_g_per_kwh=100", "policy.leave_above_g_per_kwh=100"]
    found = shown(paper_trace(), as_json=True, overrides=bands)["regions"][region]
    assert found["curtailed_share"] == pytest.approx(share, abs=0.002)
    assert found["windows"] == windows
    assert found["longest_min"] == longest_min
