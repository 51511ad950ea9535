"""CSV traces: a file that could mislead is refused, in one line that says what to do."""

import math

import numpy as np
import pytest

from uncurtail.adapters.traces import TraceError, load_csv

HEADER = "point_time,NORTH,SOUTH"
GOOD = [
    "2026-01-11 17:00:00+00:00,463.5,10",
    "2026-01-11 17:05:00+00:00,68.25,11",
    "2026-01-11 17:10:00+00:00,63,12",
    "2026-01-11 17:15:00+00:00,64,13",
]
START = 1_768_150_800.0  # 2026-01-11 17:00 UTC


def csv_file(tmp_path, *rows, header=HEADER):
    path = tmp_path / "mci.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_each_region_becomes_a_trace_held_one_step_past_its_last_row(tmp_path):
    traces = load_csv(csv_file(tmp_path, *GOOD), ["SOUTH", "NORTH"])
    assert list(traces) == ["SOUTH", "NORTH"]
    north = traces["NORTH"]
    assert north.times.tolist() == [START, START + 300, START + 600, START + 900]
    assert north.values.tolist() == [463.5, 68.25, 63, 64]
    assert north.end == START + 1200
    assert traces["SOUTH"].at(START + 1199) == 13


def test_times_may_have_any_offset_and_blank_lines_and_a_byte_order_mark_are_harmless(tmp_path):
    path = tmp_path / "mci.csv"
    text = "﻿time,NORTH\n2026-01-11T09:00:00-08:00,1\n\n2026-01-11T17:05:00Z,2\n"
    path.write_text(text, encoding="utf-8")
    assert load_csv(path, ["NORTH"])["NORTH"].times.tolist() == [START, START + 300]


def test_columns_of_other_regions_are_not_looked_at(tmp_path):
    rows = [row.rsplit(",", 1)[0] + ",broken" for row in GOOD]
    assert list(load_csv(csv_file(tmp_path, *rows), ["NORTH"])) == ["NORTH"]


WITH_A_GAP = [*GOOD, "2026-01-11 18:00:00+00:00,50,14", "2026-01-11 18:05:00+00:00,51,15"]


def test_an_allowed_gap_is_unknown_from_one_step_after_its_last_row(tmp_path):
    north = load_csv(csv_file(tmp_path, *WITH_A_GAP), ["NORTH"], allow_gaps=True)["NORTH"]
    assert north.at(START + 1199) == 64
    assert north.at(START + 1200) is None
    assert north.at(START + 3599) is None
    assert north.at(START + 3600) == 50
    assert north.end == START + 4200


def test_a_hole_of_at_most_three_steps_is_a_late_row(tmp_path):
    rows = [*GOOD, "2026-01-11 17:30:00+00:00,50,14"]
    north = load_csv(csv_file(tmp_path, *rows), ["NORTH"])["NORTH"]
    assert np.isfinite(north.values).all()
    assert north.at(START + 1799) == 64


def replaced(line, row):
    rows = list(GOOD)
    rows[line - 2] = row
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            WITH_A_GAP,
            "mci.csv:6: 2700 s without a row where 300 s are usual, "
            r"after 2026-01-11 17:15:00\+00:00: fill it, or set energy.allow_gaps",
            id="gap",
        ),
        pytest.param(
            replaced(3, "2026-01-11 17:05:00,1,2"), "mci.csv:3: .* names no time zone", id="no-zone"
        ),
        pytest.param(
            replaced(3, "11/01/26,1,2"), "mci.csv:3: .*'11/01/26'.*write times like", id="no-time"
        ),
        pytest.param(
            replaced(4, GOOD[1]), "mci.csv:4: time 2026-01-11 17:05.* is there twice", id="doubled"
        ),
        pytest.param(
            replaced(4, "2026-01-11 17:04:00+00:00,1,2"),
            "mci.csv:4: time 2026-01-11 17:04.* is before the row above it: sort rows",
            id="falling",
        ),
        pytest.param(
            replaced(5, "2026-01-11 17:15:00+00:00,nan,2"),
            "mci.csv:5: NORTH is 'nan', no number: delete the row and set energy.allow_gaps",
            id="nan",
        ),
        pytest.param(
            replaced(5, "2026-01-11 17:15:00+00:00,,2"), "mci.csv:5: NORTH is '', no", id="empty"
        ),
        pytest.param(
            replaced(5, "2026-01-11 17:15:00+00:00,n/a,2"), "5: NORTH is 'n/a', no", id="word"
        ),
        pytest.param(
            replaced(3, "2026-01-11 17:05:00+00:00,-1,2"),
            "mci.csv:3: NORTH is -1, outside 0..2000 gCO2/kWh: check the unit",
            id="negative",
        ),
        pytest.param(
            replaced(3, "2026-01-11 17:05:00+00:00,inf,2"), "NORTH is inf, outside", id="infinite"
        ),
        pytest.param(
            replaced(3, "2026-01-11 17:05:00+00:00,1"),
            "mci.csv:3: 2 cells where the header has 3: complete the row",
            id="ragged",
        ),
        pytest.param(GOOD[:1], "mci.csv has 1 rows: a trace needs at least two", id="one-row"),
        pytest.param([], "mci.csv has 0 rows", id="no-rows"),
    ],
)
def test_a_file_that_could_mislead_is_refused_with_place_and_remedy(tmp_path, rows, message):
    assert_refused(csv_file(tmp_path, *rows), "NORTH", message)


@pytest.mark.parametrize("cell", ["nan", ""])
def test_a_cell_without_number_is_refused_even_where_gaps_are_allowed(tmp_path, cell):
    path = csv_file(tmp_path, *replaced(5, f"2026-01-11 17:15:00+00:00,{cell},2"))
    with pytest.raises(TraceError, match="no number"):
        load_csv(path, ["NORTH"], allow_gaps=True)


def test_an_unknown_region_is_answered_with_those_present_and_the_nearest(tmp_path):
    message = "mci.csv has no region 'NORHT', it has NORTH, SOUTH; did you mean 'NORTH'"
    assert_refused(csv_file(tmp_path, *GOOD), "NORHT", message)


def test_the_time_column_is_no_region(tmp_path):
    assert_refused(csv_file(tmp_path, *GOOD), "point_time", "no region 'point_time'")


def test_a_region_with_two_columns_is_refused(tmp_path):
    path = csv_file(tmp_path, *GOOD, header="time,NORTH,NORTH")
    assert_refused(path, "NORTH", "mci.csv has 2 columns 'NORTH': rename all but one")


def test_a_missing_file_is_named(tmp_path):
    assert_refused(tmp_path / "none.csv", "NORTH", "no file .*none.csv: paths are relative to")


def test_what_is_no_text_file_is_named(tmp_path):
    assert_refused(tmp_path, "NORTH", "cannot be read as UTF-8 CSV")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"time,NORTH\n\xff\xfe\x00")
    assert_refused(binary, "NORTH", "binary.csv cannot be read as UTF-8 CSV")


def assert_refused(path, region, message):
    with pytest.raises(TraceError, match=message) as refusal:
        load_csv(path, [region])
    assert "\n" not in str(refusal.value)


def test_a_year_of_rows_is_loaded_whole(tmp_path):
    hours = np.arange(8760)
    stamps = np.datetime64("2026-01-01T00:00:00") + hours.astype("timedelta64[h]")
    path = csv_file(tmp_path, *(f"{t}Z,{h % 500},1" for t, h in zip(stamps, hours, strict=True)))
    north = load_csv(path, ["NORTH"])["NORTH"]
    assert len(north.times) == 8760
    assert math.isclose(north.end - north.times[0], 365 * 86_400)
