"""Seeded schedules of kills, losses and delays in virtual time; verify must pass after each."""

import random

import numpy as np
import pytest

from tests.virtual import START, Virtual, experiment
from uncurtail.core.events import (
    CoordinatorStarted,
    RoundCommitted,
    RoundSkipped,
    RunEnded,
    SiteReleased,
    Trouble,
    UpdateAccepted,
    UpdateRejected,
    WindowClosed,
    WindowOpened,
    unix,
)
from uncurtail.core.leases import FreeSteps, count_steps
from uncurtail.core.signals import Trace
from uncurtail.verify import verify

HOURS = 3600.0


def check(run: Virtual) -> None:
    """Nothing is broken, and the run ended with every site released."""
    broken = [c for c in verify(run.folder, recompute_tokens=False) if c.passed is False]
    assert broken == []
    assert isinstance(run.folder.read_events()[-1], RunEnded)
    assert not any(run.sites.alive().values())


def kinds(run: Virtual, kind):
    return [event for event in run.folder.read_events() if isinstance(event, kind)]


def _kill_a_site(rng: random.Random):
    return lambda run: run.sites.kill(rng.choice(list(run.settings.sites)))


def _kill_every_site(_rng: random.Random):
    return lambda run: [run.sites.kill(site) for site in run.settings.sites]


def _restart_the_coordinator(_rng: random.Random):
    return lambda run: run.restart()


def _lose_replies(rng: random.Random):
    def strike(run: Virtual) -> None:
        run.sites.lost_replies += rng.randint(1, 6)

    return strike


def _double_replies(rng: random.Random):
    def strike(run: Virtual) -> None:
        run.sites.doubled_replies += rng.randint(1, 3)

    return strike


def _cut_off_the_state(rng: random.Random):
    def strike(run: Virtual) -> None:
        run.sites.cut_off_until = run.t + rng.choice([5.0, 60.0, 900.0])

    return strike


def _refuse_an_update(rng: random.Random):
    site = rng.choice(["duck", "solar", "windy"])

    def strike(run: Virtual) -> None:
        run.merger.refuse = lambda update: "not finite" if site in update else None

    return strike


FAULTS = [
    _kill_a_site,
    _kill_every_site,
    _restart_the_coordinator,
    _lose_replies,
    _double_replies,
    _cut_off_the_state,
    _refuse_an_update,
]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_strikes_every_step_counts_once_and_nothing_is_left_running(seed, virtual):
    rng = random.Random(seed)
    run = virtual(experiment(run={"duration_s": 6 * HOURS}), steps_per_epoch=150)
    start = unix(START)
    faults = [
        (start + rng.uniform(0.0, 6.2) * HOURS, rng.choice(FAULTS)(rng))
        for _ in range(rng.randint(1, 8))
    ]
    run.until(start + 8 * HOURS, faults)
    check(run)


def test_a_killed_site_is_back_and_its_lease_is_trained_by_somebody(virtual):
    run = virtual(experiment(run={"duration_s": 3 * HOURS}))
    run.until(
        unix(START) + 4 * HOURS, [(unix(START) + 1.1 * HOURS, lambda r: r.sites.kill("windy"))]
    )
    check(run)
    causes = [e.cause for e in kinds(run, SiteReleased) if e.site == "windy"]
    assert causes == ["lost", "drained"]
    assert [e.reason for e in kinds(run, UpdateRejected)] == ["the site is gone"]


def test_a_site_that_no_order_reaches_is_started_anew_and_trains(virtual):
    run = virtual(experiment(run={"duration_s": 6 * HOURS}))

    def deafen(r: Virtual) -> None:
        r.sites.deaf.add(("windy", 1))

    run.until(unix(START) + 8 * HOURS, [(unix(START) + 1.1 * HOURS, deafen)])
    check(run)
    causes = [e.cause for e in kinds(run, SiteReleased) if e.site == "windy"]
    assert causes[0] == "lost"
    again = {e.session for e in kinds(run, UpdateAccepted) if e.site == "windy"}
    assert again >= {1, 2}


def test_a_new_coordinator_goes_on_from_the_last_commit_and_adopts_the_sites(virtual):
    run = virtual(experiment(run={"duration_s": 3 * HOURS}))
    run.until(unix(START) + 4 * HOURS, [(unix(START) + 1.2 * HOURS, Virtual.restart)])
    check(run)
    assert {e.cause for e in kinds(run, SiteReleased)} == {"drained"}, "no site was started anew"
    assert [c.epoch for c in run.folder.read_commits()][-1] == 2


def test_a_round_without_a_valid_update_leaves_the_model_as_it_was(virtual):
    run = virtual(experiment(run={"duration_s": 2 * HOURS}))
    run.merger.refuse = lambda _update: "not finite"
    run.finish()
    check(run)
    assert kinds(run, RoundCommitted) == []
    assert len(kinds(run, RoundSkipped)) > 1
    assert run.loop.rounds.head.version == 0
    assert run.loop.rounds.head.free == FreeSteps(500)


def test_a_lost_reply_is_asked_for_again_and_trained_only_once(virtual):
    run = virtual(experiment(run={"duration_s": 2 * HOURS}))
    run.sites.lost_replies = 1
    run.finish()
    check(run)
    assert kinds(run, UpdateRejected) == []


def test_without_the_state_plane_the_run_goes_on_from_what_was_last_heard(virtual):
    run = virtual(experiment(run={"duration_s": 3 * HOURS}))

    def cut(r: Virtual) -> None:
        r.sites.cut_off_until = r.t + 1800.0

    run.until(unix(START) + 5 * HOURS, [(unix(START) + HOURS, cut)])
    check(run)
    assert len(kinds(run, RoundCommitted)) > 3


def test_the_budget_is_met_exactly_and_ends_the_run(virtual):
    budget = 200 * 2048
    run = virtual(experiment(train={"budget_tokens": budget}))
    run.finish()
    check(run)
    assert run.loop.rounds.head.tokens == budget
    assert kinds(run, RunEnded)[0].reason == "budget"


def test_nothing_but_one_epoch_of_tiny_data_is_shared_by_all_sites(virtual):
    run = virtual(experiment(run={"duration_s": 2 * HOURS}), steps_per_epoch=7)
    run.finish()
    check(run)
    head = run.loop.rounds.head
    consumed = sum(
        count_steps(update.intervals)
        for commit in run.folder.read_commits()
        for update in commit.updates
    )
    assert consumed + count_steps(head.free.intervals) == 7 * head.free.next_epoch


def test_sites_train_though_a_message_takes_longer_than_a_round(virtual):
    rounds = {"length_s": 120.0, "max_steps": 60, "grace_wall_s": 240.0}
    settings = experiment(rounds=rounds, run={"duration_s": 3 * HOURS})
    run = virtual(settings, latency_s=150.0)
    run.finish()
    check(run)
    assert len(kinds(run, RoundCommitted)) > 10


def test_clocks_that_are_off_are_told_and_change_nothing(virtual):
    run = virtual(experiment(run={"duration_s": 4 * HOURS}))
    run.until(unix(START) + 5 * HOURS, [(unix(START) + HOURS, _put_clocks_off)])
    check(run)
    told = [event for event in kinds(run, Trouble) if event.source == "clock"]
    assert told
    assert all(" by +90 s" in event.message and "(NTP)" in event.message for event in told)
    assert min(event.t for event in told) >= unix(START) + HOURS
    assert kinds(run, RoundCommitted)


def _put_clocks_off(run: Virtual) -> None:
    run.sites.skew_s = 90.0


def _kill_the_coordinator_at_a_write(rng: random.Random):
    lives, after = rng.randint(1, 12), rng.random() < 0.5

    def strike(run: Virtual) -> None:
        run.journal.lives, run.journal.after = lives, after

    return strike


@pytest.mark.parametrize("seed", range(40))
def test_a_coordinator_killed_at_any_write_loses_no_more_than_the_open_round(seed, virtual):
    rng = random.Random(seed)
    run = virtual(experiment(run={"duration_s": 6 * HOURS}), steps_per_epoch=150)
    start = unix(START)
    faults = [
        (start + rng.uniform(0.0, 6.0) * HOURS, _kill_the_coordinator_at_a_write(rng))
        for _ in range(rng.randint(2, 8))
    ]
    run.until(start + 8 * HOURS, faults)
    check(run)


def test_what_a_restart_tells_again_is_no_younger_for_it(virtual):
    """Hourly values that count for 15 minutes: a coordinator started in between opens no window."""
    hourly = np.arange(unix(START), unix(START) + 8 * HOURS, HOURS)
    traces = {
        name: Trace(hourly, np.full(len(hourly), 20.0), float(hourly[-1]) + HOURS)
        for name in ("duck", "solar", "windy")
    }
    run = virtual(experiment(run={"duration_s": 5 * HOURS}), traces=traces)
    minutes = [20.0, 40.0, 85.0, 110.0, 150.0]
    faults = [(unix(START) + 60.0 * minute, Virtual.restart) for minute in minutes]
    run.until(unix(START) + 8 * HOURS, faults)
    check(run)
    opened = [(event.t - unix(START)) % HOURS for event in kinds(run, WindowOpened)]
    assert opened
    assert max(opened) < 120.0, "only at the full hour"


def test_a_window_that_shuts_and_opens_again_costs_its_site_the_open_round_at_most(virtual):
    """A held site drops its stand-by order when its window shuts, and is ordered anew."""
    t = unix(START) + np.array([0.0, 1800.0, 2100.0])
    flapping = Trace(t, np.array([20.0, 400.0, 20.0]), unix(START) + 30 * HOURS)
    steady = Trace(t[:1], np.array([20.0]), unix(START) + 30 * HOURS)
    run = virtual(
        experiment(
            policy={"kind": "threshold", "min_up_s": 7200.0, "stale_after_s": 1e6},
            rounds={"length_s": HOURS, "max_steps": 500, "grace_wall_s": 20.0},
            run={"duration_s": 4 * HOURS},
        ),
        traces={"duck": flapping, "solar": steady, "windy": steady},
    )
    run.until(unix(START) + 6 * HOURS)
    check(run)
    trained = {(event.round, event.site) for event in kinds(run, UpdateAccepted)}
    assert {(1, "duck"), (2, "duck"), (3, "duck")} <= trained


def test_of_two_readings_of_one_time_the_one_that_a_kill_kept_back_is_told_again(virtual):
    t = unix(START) + np.array([0.0, HOURS])
    shut = Trace(t, np.array([20.0, 400.0]), unix(START) + 30 * HOURS)
    settings = experiment(
        policy={"kind": "threshold", "stale_after_s": 1e6}, run={"duration_s": 3 * HOURS}
    )
    run = virtual(settings, traces=dict.fromkeys(("duck", "solar", "windy"), shut))

    def strike(r: Virtual) -> None:
        r.journal.lives = 3  # the power until then, one reading, and no more

    run.until(unix(START) + 4 * HOURS, [(unix(START) + HOURS - 10.0, _at_the_change(strike))])
    check(run)
    assert len(kinds(run, CoordinatorStarted)) == 2
    closed = {event.site: event.t - unix(START) for event in kinds(run, WindowClosed)}
    assert closed.keys() == {"duck", "solar", "windy"}
    assert max(closed.values()) < HOURS + 60.0


def _at_the_change(strike):
    """Strike in the tick that takes the readings, and not in one before."""

    def wait(run: Virtual) -> None:
        run.until(unix(START) + HOURS - 0.5)
        strike(run)

    return wait


def test_a_run_whose_newest_model_was_damaged_goes_on_from_the_one_before(virtual):
    run = virtual(experiment(run={"duration_s": 5 * HOURS}))

    def damage(r: Virtual) -> None:
        newest = r.loop.rounds.head
        assert newest.version > 1
        (r.folder.path / newest.model).write_bytes(b"half a mod")
        r.restart()
        assert r.loop.rounds.head.version == newest.version - 1

    run.until(unix(START) + 6 * HOURS, [(unix(START) + 2.5 * HOURS, damage)])
    check(run)
    versions = [event.version for event in kinds(run, RoundCommitted)]
    assert sorted(set(versions)) != versions, "a version was committed a second time"
