"""Events: typed in, typed out, and each names the function that decides it."""

import importlib
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core import events as ev

KINDS = sorted(ev.EVENT_TYPES.values(), key=lambda kind: kind.__name__)
# From 1970 to 2100, to the millisecond: what both clocks give.
moments = st.integers(0, 4_102_444_800_000).map(lambda ms: ms / 1000)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**53)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    float: numbers,
    float | None: st.none() | numbers,
    int: counts,
    str: st.text(max_size=20),
    list[str]: st.lists(st.text(max_size=10), max_size=3),
    list[list[int]]: st.lists(st.lists(counts, min_size=3, max_size=3), max_size=3),
}


def event_of(kind):
    given_fields = {
        f.name: moments if f.name in ("t", "wall_s") else OF_TYPE[f.type] for f in fields(kind)
    }
    return st.builds(kind, **given_fields)


def by_name(kind):
    return kind.__name__


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_event_is_read_as_it_was_written(kind, data):
    event = data.draw(event_of(kind))
    line = ev.encode(event)
    assert "\n" not in line
    assert ev.decode(line) == event


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_every_event_names_a_function_that_exists_and_decides_it(kind):
    module, _, rest = kind.decided_by, "", ""
    while True:
        module, _, last = module.rpartition(".")
        rest = f"{last}.{rest}".strip(".")
        assert module, f"{kind.decided_by} leads nowhere"
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        break
    for name in rest.split("."):
        found = getattr(found, name)
    assert callable(found)
    assert not inspect.isclass(found)
    assert inspect.getdoc(found), "a newcomer starts reading there"
    assert found.__module__ == module, "it is named where it is defined"


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_the_architecture_page_leads_from_every_event_to_the_same_function(kind):
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    deciders = [
        decider.strip() for _, events, decider, *_ in rows if f"`{kind.__name__}`" in events
    ]
    assert deciders == [f"`{kind.decided_by.removeprefix('uncurtail.')}`"]


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_every_event_says_what_it_means(kind):
    assert "decided_by" in vars(kind), "inherited: nobody decides it"
    assert inspect.getdoc(kind) != inspect.getdoc(ev.Event)


def test_a_line_begins_with_its_time_and_its_type_for_a_person_to_read():
    line = ev.encode(ev.RoundSkipped(t=1_769_860_800.25, wall_s=12.0, round=3))
    assert line == (
        '{"t": "2026-01-31T12:00:00.250+00:00", "wall_s": 12.0, '
        '"event": "RoundSkipped", "round": 3}'
    )


GOOD = json.loads(ev.encode(ev.RoundSkipped(t=1.0, wall_s=1.0, round=3)))


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="empty"),
        pytest.param('{"t": "2026-01-31T12:00', id="torn"),
        pytest.param("null", id="null"),
        pytest.param("[]", id="list"),
        pytest.param("7", id="number"),
        pytest.param(json.dumps({**GOOD, "event": "RoundMerged"}), id="unknown-type"),
        pytest.param(json.dumps({**GOOD, "event": "Event"}), id="the-base-type"),
        pytest.param(json.dumps({**GOOD, "event": None}), id="no-type"),
        pytest.param(json.dumps({**GOOD, "mood": "fine"}), id="unknown-field"),
        pytest.param(json.dumps({k: v for k, v in GOOD.items() if k != "round"}), id="missing"),
        pytest.param(json.dumps({**GOOD, "t": "2026-01-31T12:00:00"}), id="time-without-zone"),
        pytest.param(json.dumps({**GOOD, "t": "noon"}), id="no-time"),
        pytest.param(json.dumps({**GOOD, "t": 7.0}), id="time-as-number"),
    ],
)
def test_what_is_no_event_of_this_version_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        ev.decode(line)


def test_a_loss_that_is_not_finite_is_not_written():
    event = ev.Evaluated(t=1.0, wall_s=1.0, version=1, tokens=1, site="a", val_loss=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        ev.encode(event)


@pytest.mark.parametrize(
    ("text", "t"),
    [
        ("1970-01-01T00:00:00+00:00", 0.0),
        ("1970-01-01T02:00:00+02:00", 0.0),
        ("1970-01-01T00:00:00.250Z", 0.25),
    ],
)
def test_times_are_read_in_any_zone(text, t):
    assert ev.unix(text) == t


@settings(deadline=None)
@given(moments)
def test_a_time_survives_being_written(t):
    assert ev.unix(ev.iso(t)) == t
