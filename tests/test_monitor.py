"""What a person sees: every event that matters in words, and a picture that always renders."""

import io

import pytest
from rich.console import Console

from tests.virtual import START, Virtual, experiment
from uncurtail.core import events as ev
from uncurtail.core.events import EVENT_TYPES, unix
from uncurtail.core.orders import StepReport
from uncurtail.core.signals import Reading
from uncurtail.monitor import Monitor, describe
from uncurtail.runfolder import Journal, RunFolder

AT = {"t": unix(START), "wall_s": 1.0}
SAID = [
    (
        ev.CoordinatorStarted(**AT, epoch=2, run="demo-1", version=3, tokens=5),
        "coordinator 2 at work, from model version 3",
    ),
    (
        ev.WindowOpened(**AT, site="solar", intensity_g_per_kwh=12.4),
        "solar: curtailed, 12 g/kWh",
    ),
    (
        ev.WindowClosed(**AT, site="solar", intensity_g_per_kwh=312.6),
        "solar: no longer curtailed, 313 g/kWh",
    ),
    (
        ev.WindowClosed(**AT, site="solar", intensity_g_per_kwh=None),
        "solar: nobody knows its power: not curtailed",
    ),
    (
        ev.WindowDimmed(**AT, site="solar", intensity_g_per_kwh=150.4),
        "solar: no longer curtailed, 150 g/kWh, but clean enough to go on capped",
    ),
    (
        ev.WindowCleared(**AT, site="solar", intensity_g_per_kwh=80.0),
        "solar: curtailed, 80 g/kWh, full power again",
    ),
    (
        ev.SitePhase(**AT, site="solar", session=2, phase="provisioning", power_w=1.0),
        "solar: provisioning (session 2)",
    ),
    (ev.SitePhase(**AT, site="solar", session=2, phase="training", power_w=1.0), ""),
    (ev.SitePhase(**AT, site="solar", session=2, phase="capped", power_w=1.0), ""),
    (ev.SiteReleased(**AT, site="solar", session=2, cause="lost"), "solar: session lost"),
    (ev.SiteReleased(**AT, site="solar", session=2, cause="drained"), ""),
    (
        ev.UpdateRejected(**AT, round=3, site="solar", session=2, steps=9, reason="not finite"),
        "solar: update refused (not finite), 9 steps to do again",
    ),
    (
        ev.RoundCommitted(
            **AT, round=3, version=4, tokens=12345, sites=["solar", "windy"], sha256="x"
        ),
        "round 3: solar + windy -> version 4, 12,345 tokens",
    ),
    (ev.RoundSkipped(**AT, round=3), "round 3: no update, the model stays as it was"),
    (
        ev.Evaluated(**AT, version=4, tokens=1, site="solar", val_loss=4.56789),
        "validation loss of version 4: 4.568",
    ),
    (ev.StopRequested(**AT, reason="budget"), "winding down: budget"),
    (ev.Trouble(**AT, source="redis", message="refused"), "redis: refused"),
    (
        ev.RunEnded(**AT, reason="budget", version=4, tokens=12345),
        "ended with version 4, 12,345 to",
    ),
]
FOR_MACHINES = {"SiteProvisioned", "RoundOpened", "OrderSent", "UpdateAccepted"}


@pytest.mark.parametrize(
    ("event", "words"), SAID, ids=lambda value: type(value).__name__ if value else ""
)
def test_an_event_that_matters_is_said_in_words(event, words):
    assert describe(event).startswith(words)
    assert bool(describe(event)) is bool(words)


def test_a_window_that_opens_dim_is_not_called_curtailed():
    opened = ev.WindowOpened(**AT, site="solar", intensity_g_per_kwh=150.0)
    assert describe(opened, 100.0) == "solar: clean enough for capped power, 150 g/kWh"


def test_every_type_of_event_is_said_or_is_for_machines_on_purpose():
    said = {type(event).__name__ for event, words in SAID if words}
    assert said | FOR_MACHINES == EVENT_TYPES.keys()
    assert said & FOR_MACHINES == set()


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "demo-1")


@pytest.fixture
def journal(folder):
    journal = Journal(folder)
    yield journal
    journal.close()


def watching(folder, *, terminal=False):
    settings = experiment(train={"budget_tokens": 20_000}, run={"duration_s": 3600.0})
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=100, record=True, color_system=None
    )
    return Monitor(settings, folder, console, unix(START))


def shown(monitor):
    return monitor.console.export_text()


def picture(monitor):
    monitor.console.print(monitor.picture())
    return shown(monitor)


def test_without_a_terminal_each_thing_worth_knowing_is_one_line_with_its_time(folder, journal):
    journal.events([event for event, _ in SAID])
    monitor = watching(folder)
    with monitor.showing():
        assert [type(event) for event in monitor.poll()] == [type(event) for event, _ in SAID]
    lines = shown(monitor).splitlines()
    assert lines == [f"24 Jul 06:00  {describe(event)}" for event, words in SAID if words]


def test_before_the_run_has_written_anything_nothing_is_shown(folder):
    monitor = watching(folder)
    assert monitor.poll() == []
    assert shown(monitor) == ""


def test_an_event_is_shown_once_and_a_torn_line_when_it_is_whole(folder, journal):
    monitor = watching(folder)
    journal.event(SAID[0][0])
    assert len(monitor.poll()) == 1
    line = ev.encode(SAID[1][0])
    with folder.events_file.open("a") as file:
        file.write(line[:20])
        file.flush()
        assert monitor.poll() == []
        file.write(line[20:] + "\n")
    assert monitor.poll() == [SAID[1][0]]
    assert monitor.poll() == []


def test_what_an_earlier_coordinator_wrote_is_known_but_not_said_again(folder, journal):
    journal.events([event for event, _ in SAID])
    monitor = watching(folder)
    monitor.skip_old()
    assert monitor.poll() == []
    assert shown(monitor) == ""
    assert monitor.tokens == 12345
    assert monitor.val_loss == pytest.approx(4.56789)


def test_a_run_that_goes_on_began_when_it_began(folder, journal):
    journal.event(SAID[0][0])
    monitor = watching(folder)
    monitor.start = unix(START) + 5e6  # a clock that starts "now"
    monitor.skip_old()
    assert monitor.start == unix(START)


def test_a_site_may_be_named_as_a_column_is(folder, journal):
    journal.reading(Reading("site", AT["t"], 300.0))
    journal.steps([(AT["t"], StepReport("site", 1, 1, 0, 7, 4.5, 2048, 1.0))])
    monitor = watching(folder)
    monitor.config = experiment(sites={"site": {"preset": "duck"}})
    monitor.poll()
    assert "300" in picture(monitor)
    assert "4.500" in picture(monitor)


def test_the_picture_renders_before_anything_happened(folder):
    text = picture(watching(folder))
    for name in ("duck", "solar", "windy"):
        assert f"{name}" in text
    assert text.count("?") == 3, "nobody's power is known"
    assert "0 tokens" in text
    assert "validation loss -" in text
    assert " 0 %" in text


def test_the_picture_follows_the_run_folder(folder, journal):
    monitor = watching(folder)
    journal.reading(Reading("solar", AT["t"], 300.0))
    journal.reading(Reading("solar", AT["t"] + 300.0, 12.4))
    journal.steps(
        (AT["t"], StepReport("solar", 1, 1, 0, step, 7.0 - 0.1 * step, 714, AT["wall_s"]))
        for step in range(6)
    )
    journal.events(
        [
            ev.WindowOpened(**AT, site="solar", intensity_g_per_kwh=12.4),
            ev.SitePhase(**AT, site="solar", session=1, phase="training", power_w=1.0),
            ev.RoundCommitted(**AT, round=1, version=1, tokens=5000, sites=["solar"], sha256="x"),
            ev.Evaluated(**AT, version=1, tokens=5000, site="solar", val_loss=6.25),
        ]
    )
    monitor.poll()
    monitor.console.clear()
    text = picture(monitor)
    assert "5,000 tokens" in text
    assert "25 %" in text
    assert "validation loss 6.250" in text
    assert "1 merges" in text
    (row,) = [line for line in text.splitlines() if line.startswith("solar")]
    assert row.split() == ["solar", "12", "curtailed", "training", "6", "6.500"]


@pytest.mark.parametrize("message", ["[/nowhere] refused", "[bold]no[/bold]", "[/]", "a\\[b"])
def test_what_fails_is_shown_as_it_was_said_whatever_it_holds(folder, journal, message):
    journal.event(ev.Trouble(**AT, source="redis", message=message))
    monitor = watching(folder)
    monitor.poll()
    assert message in shown(monitor)
    assert message in picture(monitor)
    refused = ev.UpdateRejected(
        **AT, round=1, site="solar", session=1, steps=1, reason=f"shape {message}"
    )
    journal.event(refused)
    monitor.poll()
    assert f"shape {message}" in shown(monitor)


def test_the_live_picture_takes_the_place_of_lines(folder, journal):
    monitor = watching(folder, terminal=True)
    with monitor.showing():
        journal.event(ev.Trouble(**AT, source="redis", message="[/nowhere] refused"))
        monitor.poll()
        monitor.say("Stopping: sites finish their step and hand in their work.")
        monitor.poll()
    assert "Stopping: sites finish" in shown(monitor)


def test_progress_is_by_tokens_or_by_time_and_never_beyond_the_end(folder, journal):
    monitor = watching(folder)
    later = {"t": AT["t"] + 1800.0, "wall_s": 1.0}
    journal.event(ev.RoundSkipped(**later, round=1))
    monitor.poll()
    assert "50 %" in picture(monitor)
    done = ev.RoundCommitted(**later, round=1, version=1, tokens=10**9, sites=[], sha256="x")
    journal.event(done)
    monitor.poll()
    assert "100 %" in picture(monitor)


def test_a_whole_run_can_be_watched(tmp_path):
    run = Virtual(tmp_path, experiment(run={"duration_s": 2 * 3600.0}))
    monitor = Monitor(run.settings, run.folder, Console(file=io.StringIO(), record=True), run.t)
    seen = []
    for _ in range(4):
        run.until(run.t + 1800.0)
        seen += monitor.poll()
        picture(monitor)
    run.finish()
    seen += monitor.poll()
    run.close()
    assert seen == run.folder.read_events()
    assert monitor.tokens == run.loop.rounds.head.tokens
    assert {site.phase for site in monitor.sites.values()} == {"released"}
