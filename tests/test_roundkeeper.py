"""Rounds carried through against a post that loses, doubles, delays and lies."""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from uncurtail import wire
from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.core.events import (
    Evaluated,
    OrderSent,
    RoundCommitted,
    RoundOpened,
    RoundSkipped,
    UpdateAccepted,
    UpdateRejected,
)
from uncurtail.core.leases import FreeSteps, count_steps, split
from uncurtail.core.rounds import Order, Reply, RoundsSection, member
from uncurtail.orderdesk import Moment, Terms
from uncurtail.roundkeeper import FencedError, RoundKeeper

TOKENS = 100  # of one step


@dataclass
class FakePost:
    """Remembers what was sent, and hands out what sites left in the store."""

    sent: list[Order] = field(default_factory=list)
    left: dict[str, Reply] = field(default_factory=dict)
    trouble: str | None = None

    def send(self, order: Order) -> None:
        self.sent.append(order)

    def receive(self) -> list[Reply]:
        return []

    def recall(self, order: Order) -> Reply | None:
        return self.left.get(f"{order.round}/{member(order.site, order.session)}")

    def online(self) -> frozenset[str]:
        return frozenset()

    def take(self) -> list[Order]:
        sent, self.sent = self.sent, []
        return sent


@dataclass
class FakeMerger:
    """Refuses the updates that it is told to; names each model after what went into it."""

    refused: dict[str, str] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)
    resets: int = 0

    def fold(self, update: str, sha256: str, base: str, tokens: int) -> str | None:
        if update not in self.refused:
            self.folded.append(update)
        return self.refused.get(update)

    def finish(self, base: str, outer: str | None) -> tuple[str, str | None]:
        assert self.folded
        name = f"{base}+{len(self.folded)}"
        self.folded.clear()
        return name, f"outer of {name}"

    def reset(self) -> None:
        self.folded.clear()
        self.resets += 1


@dataclass
class FakeCommits:
    """A store that remembers what was put and what may be deleted."""

    put: dict[str, bytes] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    before_round: int = -1

    def put_new(self, key: str, data: bytes) -> bool:
        if key in self.put:
            return False
        self.put[key] = data
        return True

    def retire(self, keep, before_round: int) -> None:
        self.kept, self.before_round = set(keep), before_round


class Desk:
    """A RoundKeeper among fakes, with a clock of its own."""

    def __init__(self, *, steps=1000, budget=10**9, speed=1.0, head=None, **section):
        self.post, self.merger, self.commits = FakePost(), FakeMerger(), FakeCommits()
        self.events: list[Any] = []
        self.now = Moment(1000.0, 5000.0)
        self.terms = Terms(
            run="demo-1",
            epoch=2,
            speed=speed,
            tokens_per_step=TOKENS,
            budget_tokens=budget,
            rounds=RoundsSection(
                **{"length_s": 600.0, "max_steps": 10, "grace_wall_s": 20.0, **section}
            ),
        )
        self.keeper = RoundKeeper(
            self.terms,
            head or first_commit(steps),
            last_round=6,
            evaluated=set(),
            outside=(self.post, self.merger, self.commits),
            emit=lambda *events: self.events.extend(events),
        )

    def wait(self, seconds):
        self.now = Moment(self.now.t + seconds * self.terms.speed, self.now.wall_s + seconds)

    def advance(self, *, stopping=False, **able) -> list[Order]:
        self.keeper.advance(able, self.now, stopping=stopping)
        return self.post.take()

    def prepare(self, **stepping) -> list[Order]:
        self.keeper.prepare(stepping, self.now)
        return self.post.take()

    def collect(self, *replies):
        self.keeper.collect(list(replies), self.now)

    def close(self, *, stopping=False) -> Commit | None:
        """Close and commit if it is time; the new commit, if there is one."""
        closed = self.keeper.close(self.now, stopping=stopping)
        if closed is None:
            return None
        self.keeper.commit(closed, {"ledger": 1}, 77, self.now)
        return self.keeper.head

    def of(self, kind) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def first_commit(steps) -> Commit:
    return Commit(
        run="demo-1",
        version=0,
        epoch=0,
        round=0,
        parent_sha256=None,
        t=0.0,
        wall_s=0.0,
        model="objects/0",
        outer=None,
        tokens=0,
        free=FreeSteps(steps),
    )


def trained(order, steps=None, **what) -> Reply:
    done = count_steps(order.intervals) if steps is None else steps
    name = f"updates/{order.round}/{member(order.site, order.session)}"
    claim = {
        "steps": done,
        "tokens": done * TOKENS,
        "mean_loss": 2.0,
        "update": name,
        "update_sha256": "u",
        "val_loss": 7.0 if order.evaluate else None,
    }
    return wire.answer(order, **{**claim, **what})


def lost(order) -> Reply:
    return wire.answer(order, error="Flower 5: lost on the way")


def test_each_able_site_is_ordered_a_lease_of_its_own_from_the_newest_model():
    desk = Desk(speed=60.0)
    solar, windy = desk.advance(solar=3, windy=1)
    assert (solar.site, solar.session, solar.intervals) == ("solar", 3, ((0, 0, 10),))
    assert (windy.site, windy.session, windy.intervals) == ("windy", 1, ((0, 10, 20),))
    assert {(o.run, o.epoch, o.round, o.attempt) for o in (solar, windy)} == {("demo-1", 2, 7, 1)}
    assert (solar.base_version, solar.base) == (0, "objects/0")
    assert solar.train_for_wall_s == 10.0, "600 simulated seconds at speed 60"
    assert solar.not_after_wall == 5010.0
    assert [type(event) for event in desk.events] == [RoundOpened, OrderSent, OrderSent]
    assert desk.advance(solar=3, windy=1) == [], "asked once"


def test_a_late_joiner_gets_only_the_time_that_is_left():
    desk = Desk()
    desk.advance(solar=1)
    desk.wait(450.0)
    (order,) = desk.advance(solar=1, windy=1)
    assert order.site == "windy"
    assert order.train_for_wall_s == 150.0
    desk.wait(150.0)
    assert desk.advance(duck=1) == []


def test_a_round_with_its_answers_is_committed_with_what_was_consumed():
    desk = Desk()
    solar, windy = desk.advance(solar=1, windy=1)
    desk.collect(trained(solar, 4), trained(windy))
    commit = desk.close()
    assert commit is not None
    assert (commit.version, commit.epoch, commit.round, commit.tokens) == (1, 2, 7, 14 * TOKENS)
    assert [u.intervals for u in commit.updates] == [((0, 0, 4),), ((0, 10, 20),)]
    assert commit.free == FreeSteps(1000, 1, ((0, 4, 10), (0, 20, 1000)))
    assert commit.parent_sha256 == first_commit(1000).sha256()
    assert (commit.model, commit.outer) == ("objects/0+2", "outer of objects/0+2")
    assert (commit.ledger, commit.event_offset) == ({"ledger": 1}, 77)
    assert desk.commits.put == {commits.key(1): commit.encode()}
    assert desk.commits.kept >= {commit.model, commit.outer, "objects/0"}
    assert desk.commits.before_round == 7
    assert desk.of(RoundCommitted)[0].sha256 == commit.sha256()
    again, _ = desk.advance(solar=1, windy=1)
    assert again.intervals == ((0, 4, 10), (0, 20, 24)), "what was given back comes first"


def test_a_session_is_mute_after_so_many_rounds_without_any_word_of_it():
    desk = Desk(mute_rounds=2)
    mute: list[bool] = []

    def a_round(*answers):
        orders = desk.advance(solar=1)
        desk.collect(*(answer(order) for answer in answers for order in orders))
        desk.wait(621.0)
        desk.close()
        mute.append(desk.keeper.mute("solar", 1))

    a_round()
    a_round(trained)
    a_round()
    a_round(lost, lost, lost)
    a_round(lambda order: trained(order, base_version=99))  # a late one's, say: but a word
    assert mute == [False, False, False, True, False]
    a_round()
    a_round()
    desk.keeper.lost("solar", 1, desk.now)
    assert mute[-2:] == [False, True]
    assert not desk.keeper.mute("solar", 1)
    assert not desk.keeper.mute("solar", 2)


@pytest.mark.parametrize("speed", [1.0, 300.0])
def test_a_silent_site_is_given_up_by_the_coordinators_own_clock(speed):
    desk = Desk(speed=speed)
    (order,) = desk.advance(solar=1)
    desk.wait(600.0 / speed + 19.9)
    assert desk.keeper.close(desk.now, stopping=False) is None
    assert desk.keeper.current is not None
    desk.wait(0.2)
    assert desk.close() is None
    assert [event.reason for event in desk.of(UpdateRejected)] == ["no answer in time"]
    assert [event.round for event in desk.of(RoundSkipped)] == [7]
    assert desk.merger.resets == 1
    assert desk.keeper.head.version == 0
    assert desk.advance(solar=1)[0].intervals == order.intervals, "leased again"


def test_an_answer_that_comes_too_late_is_lost_work_and_counts_nowhere():
    desk = Desk()
    solar, windy = desk.advance(solar=1, windy=1)
    desk.collect(trained(windy))
    desk.wait(621.0)
    assert desk.close() is not None
    desk.collect(trained(solar))
    assert desk.of(UpdateRejected)[-1].reason == "late: the round is closed"
    assert desk.of(UpdateRejected)[-1].steps == 10
    assert desk.merger.folded == []
    assert desk.keeper.head.tokens == 10 * TOKENS


def test_a_doubled_answer_is_folded_once():
    desk = Desk()
    solar, _windy = desk.advance(solar=1, windy=1)
    desk.collect(trained(solar), trained(solar), trained(solar, 3, update_sha256="v"))
    assert desk.merger.folded == ["updates/7/solar.1"]
    assert len(desk.of(UpdateAccepted)) == 1
    (lost,) = desk.of(UpdateRejected)
    assert (lost.reason, lost.steps) == ("doubled", 3), "the same once more is no lost work"


def test_a_lost_answer_is_asked_for_again_for_the_same_lease_in_the_time_that_is_left():
    desk = Desk(attempts=3)
    (order,) = desk.advance(solar=1)
    desk.wait(100.0)
    desk.collect(lost(order))
    (again,) = desk.post.take()
    assert (again.attempt, again.intervals) == (2, order.intervals)
    assert again.train_for_wall_s == 500.0, "it must not train beyond the round"
    assert again.not_after_wall == order.not_after_wall
    desk.collect(trained(again))
    commit = desk.close()
    assert commit is not None
    assert commit.tokens == 10 * TOKENS
    assert desk.of(UpdateRejected) == []


def test_what_is_lost_again_and_again_is_given_up_and_leased_to_another():
    desk = Desk(attempts=3)
    (order,) = desk.advance(solar=1)
    for _ in range(3):
        desk.collect(lost(order))
        order = (desk.post.take() or [order])[0]
    assert order.attempt == 3
    assert [event.reason for event in desk.of(UpdateRejected)] == ["Flower 5: lost on the way"]
    assert desk.close() is None
    assert desk.advance(windy=1)[0].intervals == ((0, 0, 10),)


def test_an_error_about_an_attempt_that_is_over_says_nothing_of_the_one_that_is_out():
    desk = Desk(attempts=3)
    (order,) = desk.advance(solar=1)
    desk.collect(lost(order), lost(order), lost(order), lost(order))
    (again,) = desk.post.take()
    assert again.attempt == 2
    desk.collect(trained(again))
    assert desk.close() is not None


def test_an_error_of_an_earlier_round_does_not_cost_the_open_one_an_attempt():
    desk = Desk()
    old, other = desk.advance(solar=1, windy=1)
    desk.collect(trained(other))
    desk.wait(621.0)
    assert desk.close() is not None
    new, _ = desk.advance(solar=1, windy=1)
    desk.collect(lost(old))
    assert desk.post.take() == []
    assert desk.keeper.current is not None
    assert desk.keeper.current.orders["solar.1"] == new


def test_the_answer_that_a_site_left_in_the_store_counts_when_flower_lost_it():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.post.left["7/solar.1"] = trained(order, 6)
    desk.collect(lost(order))
    assert desk.post.take() == [], "nobody is asked again"
    commit = desk.close()
    assert commit is not None
    assert commit.tokens == 6 * TOKENS


def test_the_answer_that_a_vanished_site_left_in_the_store_counts():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.post.left["7/solar.1"] = trained(order, 6)
    desk.keeper.lost("solar", 1, desk.now)
    assert desk.of(UpdateRejected) == []
    assert desk.close() is not None


def test_the_answer_in_the_store_counts_at_the_very_end_of_patience():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.post.left["7/solar.1"] = trained(order, 6)
    desk.wait(621.0)
    assert desk.close() is not None


@pytest.mark.parametrize(
    "left",
    [
        pytest.param({"steps": 99, "tokens": 99 * TOKENS}, id="more-than-leased"),
        pytest.param({"epoch": 1}, id="of-an-earlier-coordinator"),
        pytest.param({"round": 6}, id="of-an-earlier-round"),
    ],
)
def test_what_is_found_in_the_store_is_judged_like_any_answer(left):
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.post.left["7/solar.1"] = replace(trained(order), **left)
    desk.keeper.lost("solar", 1, desk.now)
    assert desk.close() is None
    assert desk.keeper.head.version == 0
    assert desk.advance(windy=1)[0].intervals == ((0, 0, 10),)


def test_a_refused_update_is_recorded_and_the_round_goes_on_without_it():
    desk = Desk()
    solar, windy = desk.advance(solar=1, windy=1)
    desk.merger.refused["updates/7/solar.1"] = "not finite"
    desk.collect(trained(solar), trained(windy))
    commit = desk.close()
    assert commit is not None
    assert [u.site for u in commit.updates] == ["windy"]
    assert commit.free.intervals[0] == (0, 0, 10), "its steps are free again"
    (event,) = desk.of(UpdateRejected)
    assert (event.site, event.steps, event.reason) == ("solar", 10, "not finite")


def test_an_answer_that_claims_other_tokens_than_its_steps_is_refused():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.collect(trained(order, tokens=10**12))
    assert desk.close() is None
    assert desk.merger.folded == []


def test_a_site_that_was_stopped_before_its_first_step_costs_nothing():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.collect(wire.answer(order))
    assert desk.close() is None
    assert desk.of(UpdateRejected) == []
    assert desk.keeper.current is None
    assert desk.advance(solar=1)[0].round == 8


def test_a_site_that_comes_back_joins_the_open_round_anew_beside_its_earlier_answer():
    desk = Desk()
    first, _ = desk.advance(solar=1, windy=1)
    desk.collect(trained(first, 3))
    desk.keeper.lost("solar", 1, desk.now)
    (second,) = desk.advance(solar=2, windy=1)
    assert (second.session, second.intervals) == (2, ((0, 20, 30),))
    desk.collect(trained(second))
    desk.wait(621.0)
    commit = desk.close()
    assert commit is not None
    assert [(u.session, u.steps) for u in commit.updates] == [(1, 3), (2, 10)]


def test_the_second_of_two_coordinators_is_fenced_off_and_announces_nothing():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.collect(trained(order))
    desk.commits.put[commits.key(1)] = b"the other one's"
    with pytest.raises(FencedError, match="version 1 is committed already"):
        desk.close()
    assert desk.commits.put[commits.key(1)] == b"the other one's"
    assert desk.keeper.head.version == 0
    assert desk.of(RoundCommitted) == []
    assert desk.commits.before_round == -1, "nothing of the other one's is deleted"


# -- stand-by orders --


def test_a_stepping_site_gets_one_stand_by_order_that_waits_for_its_round():
    desk = Desk()
    solar, _windy = desk.advance(solar=1, windy=1)
    (waiting,) = desk.prepare(solar=1)
    assert (waiting.round, waiting.base_version, waiting.base) == (8, None, None)
    assert waiting.intervals == ((0, 20, 30),)
    assert desk.prepare(solar=1) == [], "one is enough"
    desk.collect(trained(solar))
    assert desk.prepare(solar=1) == []
    assert desk.of(OrderSent)[-1].round == 7, "it is no order of a round yet"


def test_a_site_that_is_not_in_the_round_gets_no_stand_by_order():
    desk = Desk()
    assert desk.prepare(solar=1) == []
    (order,) = desk.advance(solar=1)
    assert desk.prepare(windy=1) == []
    assert desk.prepare(solar=2) == [], "another session"
    desk.collect(trained(order))
    assert desk.prepare(solar=1) == [], "it has answered: the next order comes at once"


def test_a_stand_by_order_begins_with_its_round_from_the_model_that_is_announced():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(trained(order))
    commit = desk.close()
    assert commit is not None
    assert desk.keeper.announcement(desk.now) is None
    desk.wait(30.0)
    assert desk.advance(solar=1) == [], "it is there already"
    announced = desk.keeper.announcement(desk.now)
    assert announced is not None
    assert (announced.epoch, announced.round) == (2, 8)
    assert (announced.base_version, announced.base) == (1, commit.model)
    assert (announced.close_in_wall_s, announced.not_after_wall) == (600.0, desk.now.wall_s + 600)
    assert (announced.tokens_at_start, announced.sites) == (10 * TOKENS, 1)
    desk.collect(trained(replace(waiting, base_version=1, base=commit.model)))
    commit = desk.close()
    assert commit is not None
    assert commit.updates[0].intervals == waiting.intervals


def test_a_commit_calls_free_what_waits_with_stand_by_orders():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.prepare(solar=1)
    desk.collect(trained(order, 4))
    commit = desk.close()
    assert commit is not None
    assert commit.free == FreeSteps(1000, 1, ((0, 4, 1000),)), "a successor has no order out"
    (other,) = desk.advance(solar=1, windy=1)
    assert other.intervals == ((0, 4, 10), (0, 20, 24)), "but this coordinator has"


def test_a_stand_by_order_that_is_not_wanted_any_more_gives_its_lease_back():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(wire.answer(waiting), trained(order))
    assert desk.of(UpdateRejected) == []
    assert desk.close() is not None
    assert desk.advance(windy=1)[0].intervals == waiting.intervals


def test_a_stand_by_order_of_a_vanished_session_gives_its_lease_back():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(trained(order))
    desk.keeper.lost("solar", 1, desk.now)
    assert desk.close() is not None
    assert desk.advance(windy=1)[0].intervals == waiting.intervals


def test_a_stand_by_order_that_flower_lost_may_have_arrived_so_nobody_else_gets_its_lease():
    """The ClientApp was killed; the trainer waits for its round all the same, and will train."""
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(lost(waiting), trained(order))
    assert desk.prepare(solar=1) == []
    desk.wait(30.0)
    commit = desk.close()
    assert commit is not None
    again, other = sorted(desk.advance(solar=1, windy=1), key=lambda o: o.site)
    assert again.intervals == waiting.intervals, "solar is asked again for the very same"
    assert (again.attempt, again.round) == (2, 8)
    assert (again.base_version, again.base) == (1, commit.model)
    assert (again.train_for_wall_s, again.tokens_at_start) == (600.0, 10 * TOKENS)
    assert again.not_after_wall == desk.now.wall_s + 600.0
    assert other.intervals == ((0, 20, 30),)


def test_a_site_that_leaves_with_a_lost_stand_by_order_is_not_asked_again():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(lost(waiting), trained(order))
    assert desk.close() is not None
    (other,) = desk.advance(windy=1)
    assert other.intervals == ((0, 20, 30),), "until it is gone, its lease is nobody's"
    desk.keeper.lost("solar", 1, desk.now)
    assert desk.advance(duck=1)[0].intervals == waiting.intervals
    assert desk.of(UpdateRejected) == []


def test_a_lost_stand_by_order_whose_round_passed_gives_its_lease_back():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(lost(waiting), trained(order))
    assert desk.close() is not None
    (other,) = desk.advance(windy=1)
    desk.collect(trained(other))
    assert desk.close() is not None
    (again,) = desk.advance(solar=1)
    assert (again.round, again.attempt, again.intervals) == (9, 1, waiting.intervals)


def test_a_stand_by_order_does_not_keep_its_site_from_leaving():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.prepare(solar=1)
    assert desk.keeper.busy("solar", 1)
    assert not desk.keeper.busy("solar", 2)
    desk.collect(trained(order))
    assert not desk.keeper.busy("solar", 1)


# -- the budget --


@pytest.mark.parametrize("budget", [1, TOKENS, 35 * TOKENS, 35 * TOKENS + 1, 100 * TOKENS])
@pytest.mark.parametrize("standby", [False, True], ids=["", "with-stand-by"])
def test_the_budget_is_met_to_the_step(budget, standby):
    desk = Desk(budget=budget)
    sites = {"solar": 1, "windy": 1, "duck": 1}
    waiting: list[Order] = []
    for _ in range(30):
        if desk.keeper.head.tokens >= budget:
            break
        orders = [*desk.advance(**sites), *waiting]
        version, base = desk.keeper.head.version, desk.keeper.head.model
        waiting = desk.prepare(**sites) if standby else []
        desk.collect(*(trained(replace(o, base_version=version, base=base)) for o in orders))
        desk.close()
    steps = -(-budget // TOKENS)
    assert desk.keeper.head.tokens == steps * TOKENS


def test_what_is_spoken_for_by_others_is_not_ordered_again():
    desk = Desk(budget=15 * TOKENS)
    solar, windy = desk.advance(solar=1, windy=1, duck=1)
    assert [count_steps(order.intervals) for order in (solar, windy)] == [10, 5]
    assert desk.prepare(solar=1, windy=1) == []
    desk.collect(trained(solar, 2), trained(windy))
    assert desk.close() is not None
    assert sum(count_steps(o.intervals) for o in desk.advance(solar=1, windy=1)) == 8


# -- validation --


def test_the_untrained_model_is_validated_by_one_site_once():
    desk = Desk()
    solar, windy = desk.advance(solar=1, windy=1)
    assert [order.evaluate for order in (solar, windy)] == [True, False]
    desk.collect(trained(solar, val_loss=8.5), trained(windy))
    (event,) = desk.of(Evaluated)
    assert (event.version, event.tokens, event.site, event.val_loss) == (0, 0, "solar", 8.5)


def test_a_validation_counts_whatever_becomes_of_the_update_but_only_once():
    desk = Desk()
    solar, windy = desk.advance(solar=1, windy=1)
    desk.merger.refused["updates/7/solar.1"] = "too large"
    desk.collect(trained(solar), trained(solar), trained(windy, val_loss=9.0))
    assert [(e.site, e.val_loss) for e in desk.of(Evaluated)] == [("solar", 7.0)]


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(lambda desk, order: desk.collect(lost(order)), id="lost"),
        pytest.param(lambda desk, order: desk.collect(wire.answer(order)), id="never-started"),
        pytest.param(lambda desk, order: desk.collect(trained(order, val_loss=None)), id="skipped"),
        pytest.param(
            lambda desk, order: desk.collect(trained(order, val_loss=float("nan"))), id="nan"
        ),
        pytest.param(lambda desk, order: desk.keeper.lost("solar", 1, desk.now), id="gone"),
        pytest.param(lambda desk, order: desk.wait(621.0), id="silent"),
    ],
)
def test_a_validation_that_did_not_happen_is_asked_of_another(what):
    desk = Desk(attempts=1)
    solar, duck = desk.advance(solar=1, duck=1)
    assert (solar.evaluate, duck.evaluate) == (True, False)
    what(desk, solar)
    desk.close()
    assert desk.of(Evaluated) == []
    (windy,) = desk.advance(windy=1)
    assert (windy.base_version, windy.evaluate) == (0, True)


def test_a_doubled_answer_does_not_have_the_next_model_validated_twice():
    desk = Desk(evaluate_every=1)
    solar, windy = desk.advance(solar=1, windy=1)
    desk.collect(trained(windy))
    (standby,) = desk.prepare(solar=1)
    assert standby.evaluate, "version 1, before its round"
    desk.collect(trained(solar), trained(solar))
    assert desk.close() is not None
    assert [order.evaluate for order in desk.advance(solar=1, windy=1)] == [False]


@pytest.mark.parametrize(
    "what", [{"base_version": 5}, {"base_version": None}, {"run": "demo-2"}], ids=str
)
def test_a_validation_of_no_model_of_this_run_is_ignored(what):
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.collect(replace(trained(order), **what))
    assert desk.of(Evaluated) == []


def finished(**section) -> tuple[Desk, Order]:
    """A desk whose budget is met by its first round, and that round's order."""
    desk = Desk(budget=10 * TOKENS, evaluate_every=0, **section)
    (order,) = desk.advance(solar=1)
    desk.collect(trained(order))
    assert desk.close(stopping=True) is not None
    return desk, order


def test_the_last_model_is_validated_once_before_everybody_goes():
    desk, before = finished()
    desk.keeper.evaluate_last({"solar": 1, "windy": 1}, desk.now)
    (order,) = desk.post.take()
    assert (order.evaluate, order.intervals, order.base_version) == (True, (), 1)
    kept = (before.epoch, before.round, before.session)
    assert (order.epoch, order.round, order.session) != kept, "the trainer would repeat its answer"
    assert desk.keeper.busy("solar", 1)
    desk.keeper.evaluate_last({"solar": 1, "windy": 1}, desk.now)
    assert desk.post.take() == []
    desk.collect(wire.answer(order, val_loss=3.0))
    assert [(e.version, e.val_loss) for e in desk.of(Evaluated)] == [(0, 7.0), (1, 3.0)]
    assert not desk.keeper.busy("solar", 1)
    desk.keeper.evaluate_last({"solar": 1}, desk.now)
    assert desk.post.take() == []


def test_the_last_validation_is_no_repetition_of_a_stand_by_order_either():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    (waiting,) = desk.prepare(solar=1)
    desk.collect(wire.answer(waiting), trained(order))
    assert desk.close(stopping=True) is not None
    desk.keeper.evaluate_last({"solar": 1}, desk.now)
    assert desk.post.take()[0].round not in (order.round, waiting.round)


def test_a_late_answer_of_the_last_round_is_not_taken_for_the_last_validation():
    desk = Desk(budget=20 * TOKENS, evaluate_every=0)
    solar, windy = desk.advance(solar=1, windy=1)
    desk.collect(trained(windy))
    desk.wait(621.0)
    assert desk.close(stopping=True) is not None
    desk.keeper.evaluate_last({"solar": 1}, desk.now)
    (last,) = desk.post.take()
    desk.collect(trained(solar))
    assert desk.keeper.busy("solar", 1), "its validation is still to come"
    assert desk.of(UpdateRejected)[-1].reason == "late: the round is closed"
    desk.collect(wire.answer(last, val_loss=3.0))
    assert desk.of(Evaluated)[-1].version == 1


def test_a_lost_last_validation_is_asked_for_again_but_not_for_ever():
    desk, _ = finished(attempts=3)
    attempts = []
    for _ in range(5):
        desk.keeper.evaluate_last({"solar": 1}, desk.now)
        for order in desk.post.take():
            attempts.append(order.attempt)
            desk.collect(lost(order))
    assert attempts == [1, 2, 3]
    assert not desk.keeper.busy("solar", 1)


def test_a_last_validation_whose_site_vanishes_is_asked_of_another():
    desk, _ = finished()
    desk.keeper.evaluate_last({"solar": 1, "windy": 1}, desk.now)
    desk.post.take()
    desk.keeper.lost("solar", 1, desk.now)
    desk.keeper.evaluate_last({"windy": 1}, desk.now)
    assert [order.site for order in desk.post.take()] == ["windy"]


def test_nothing_is_validated_last_while_a_round_is_open_or_when_it_was_already():
    desk = Desk()
    (order,) = desk.advance(solar=1)
    desk.keeper.evaluate_last({"solar": 1}, desk.now)
    assert desk.post.take() == []
    desk.collect(trained(order, 0, update=None))
    assert desk.close(stopping=True) is None
    desk.keeper.evaluate_last({"solar": 1}, desk.now)
    assert desk.post.take() == [], "version 0 was validated on the way"


# -- whatever happens --


def steps_of(intervals) -> list[tuple[int, int]]:
    return [(epoch, step) for epoch, start, stop in intervals for step in range(start, stop)]


class Chaos:
    """Honest trainers behind a post that loses, doubles and reorders everything.

    A trainer carries out one order for each (round, session), the first that reaches it, and
    repeats that answer to any other, as the real one does.
    """

    STEPS = 23

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        budget = self.rng.choice([7, 40, 10**6]) * TOKENS
        self.desk = Desk(steps=self.STEPS, budget=budget, max_steps=5, attempts=2, length_s=50.0)
        self.keeper = self.desk.keeper
        self.session = {"solar": 1, "windy": 1}
        self.on_the_way: list[Order] = []
        self.carried_out: dict[tuple[int, str], Order] = {}
        self.answers: dict[tuple[int, str], Reply] = {}
        self.consumed: list[tuple[int, int]] = []

    def run(self, actions: int) -> None:
        weighted = {
            self.advance: 6,
            self.prepare: 5,
            self.deliver: 10,
            self.answer: 8,
            self.vanish: 1,
            self.close: 5,
        }
        for action in self.rng.choices([*weighted], [*weighted.values()], k=actions):
            action()
            self.on_the_way += self.desk.post.take()
            self.check_that_every_step_is_in_one_place()

    def some_sites(self) -> dict[str, int]:
        return {site: n for site, n in self.session.items() if self.rng.random() < 0.7}

    def advance(self) -> None:
        stopping = self.rng.random() < 0.1
        self.keeper.advance(self.some_sites(), self.desk.now, stopping=stopping)

    def prepare(self) -> None:
        self.keeper.prepare(self.some_sites(), self.desk.now)

    def deliver(self) -> None:
        if not self.on_the_way:
            return
        order = self.on_the_way.pop(self.rng.randrange(len(self.on_the_way)))
        arrives = self.rng.random() < 0.8 and order.session == self.session[order.site]
        if arrives:
            self.carried_out.setdefault((order.round, member(order.site, order.session)), order)
        if not arrives or self.rng.random() < 0.3:
            self.desk.collect(lost(order))

    def answer(self) -> None:
        alive = {member(site, n) for site, n in self.session.items()}
        held = [key for key in self.carried_out if key[1] in alive][-4:]
        if not held:
            return
        number, name = key = self.rng.choice(held)
        if key not in self.answers:
            self.answers[key] = self.train(self.carried_out[key])
            if self.rng.random() < 0.3 and self.answers[key].steps:
                self.desk.post.left[f"{number}/{name}"] = self.answers[key]
        self.desk.collect(*[self.answers[key]] * self.rng.randrange(3))

    def train(self, order: Order) -> Reply:
        opened = [event for event in self.desk.of(RoundOpened) if event.round == order.round]
        if not opened or self.rng.random() < 0.1:
            return wire.answer(order)
        told = replace(order, base_version=opened[0].base_version)
        return trained(told, self.rng.randint(1, count_steps(order.intervals)))

    def vanish(self) -> None:
        site = self.rng.choice([*self.session])
        self.keeper.lost(site, self.session[site], self.desk.now)
        self.session[site] += 1

    def close(self) -> None:
        self.desk.wait(self.rng.choice([1.0, 1.0, 49.0, 71.0]))
        commit = self.desk.close(stopping=self.rng.random() < 0.1)
        if commit is None:
            return
        for update in commit.updates:
            key = (commit.round, member(update.site, update.session))
            really, _ = split(self.carried_out[key].intervals, self.answers[key].steps)
            assert update.intervals == really, "what is committed is what was trained"
            self.consumed += steps_of(update.intervals)
        assert sorted(steps_of(commit.free.intervals) + self.consumed) == self.opened(commit.free)
        assert commit.tokens == len(self.consumed) * TOKENS
        assert commit.tokens <= self.desk.terms.budget_tokens

    def opened(self, free: FreeSteps) -> list[tuple[int, int]]:
        return [(epoch, step) for epoch in range(free.next_epoch) for step in range(self.STEPS)]

    def check_that_every_step_is_in_one_place(self) -> None:
        desk, current = self.keeper._desk, self.keeper.current
        out = [*desk._standby.values(), *(current.orders.values() if current else [])]
        places = steps_of(desk.free.intervals) + self.consumed
        for order in out:
            places += steps_of(order.intervals)
        assert sorted(places) == self.opened(desk.free)


@pytest.mark.parametrize("seed", [*range(40), 157, 437])  # the last two failed once
def test_whatever_the_post_does_every_step_is_trained_once(seed):
    chaos = Chaos(seed)
    chaos.run(250)
    assert chaos.consumed
