"""A round takes an answer once, from whom it asked, for what it asked; all else has a reason."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from uncurtail import wire
from uncurtail.core.rounds import (
    Order,
    Reply,
    Round,
    RoundsSection,
    joiners,
    judge,
    may_retry,
    member,
    should_close,
    should_open,
    updates_folder,
    wants_evaluation,
)

ORDER = Order(
    run="demo-1",
    epoch=2,
    round=7,
    site="solar",
    session=3,
    attempt=1,
    base_version=5,
    base="objects/5",
    intervals=((0, 10, 14), (0, 20, 22)),
    train_for_wall_s=60.0,
    not_after_wall=1060.0,
    tokens_at_start=0,
    sites=2,
    evaluate=False,
)
OTHER = replace(ORDER, site="windy", session=1, intervals=((0, 30, 36),))
GOOD = wire.answer(
    ORDER,
    steps=6,
    tokens=6 * 2048,
    mean_loss=2.0,
    token_sha256="t",
    update="updates/x",
    update_sha256="u",
)
OPEN = (
    Round(number=7, base_version=5, base="objects/5", deadline=3600.0, close_wall=3620.0)
    .with_order(ORDER)
    .with_order(OTHER)
)
BAD = [
    pytest.param({"round": 6}, "late: the round is closed", id="an-earlier-round"),
    pytest.param({"round": 8}, "late: the round is closed", id="a-round-to-come"),
    pytest.param({"site": "duck"}, "unknown site or session", id="unknown-site"),
    pytest.param({"session": 2}, "unknown site or session", id="earlier-session"),
    pytest.param({"session": 4}, "unknown site or session", id="later-session"),
    pytest.param({"run": "demo-2"}, "another run or epoch", id="another-run"),
    pytest.param({"epoch": 1}, "another run or epoch", id="earlier-coordinator"),
    pytest.param({"epoch": 3}, "another run or epoch", id="later-coordinator"),
    pytest.param({"error": "out of memory"}, "out of memory", id="the-site-failed"),
    pytest.param({"base_version": 4}, "base 4 is not 5", id="stale-base"),
    pytest.param({"base_version": None}, "base None is not 5", id="no-base"),
    pytest.param({"steps": 7}, "7 steps are not within the lease", id="more-than-leased"),
    pytest.param({"steps": -1}, "-1 steps are not within the lease", id="negative"),
    pytest.param({"tokens": 10**9}, "1000000000 tokens are not 6 steps", id="too-many-tokens"),
    pytest.param({"tokens": 0}, "0 tokens are not 6 steps", id="no-tokens"),
    pytest.param({"update": None}, "no update for the steps it claims", id="no-update"),
    pytest.param({"update_sha256": ""}, "no update for the steps it claims", id="no-hash"),
]


@pytest.mark.parametrize(("what", "reason"), BAD)
def test_an_answer_that_does_not_count_is_told_why(what, reason):
    assert judge(OPEN, replace(GOOD, **what), 2048) == reason


@pytest.mark.parametrize(
    "what",
    [
        pytest.param({}, id="the-whole-lease"),
        pytest.param({"steps": 1, "tokens": 2048}, id="a-prefix"),
        pytest.param({"attempt": 9}, id="of-a-later-attempt"),
        pytest.param({"steps": 0, "tokens": 0, "update": None}, id="nothing-trained"),
        pytest.param({"steps": 0, "base_version": None}, id="stopped-before-it-had-a-base"),
        pytest.param({"mean_loss": None}, id="without-a-loss"),
    ],
)
def test_an_answer_to_what_was_asked_counts(what):
    assert judge(OPEN, replace(GOOD, **what), 2048) is None


def test_no_answer_counts_when_no_round_is_open():
    assert judge(None, GOOD, 2048) == "late: the round is closed"


@pytest.mark.parametrize("accepted", [True, False])
def test_a_member_answers_once(accepted):
    answered = OPEN.with_answer(GOOD, accepted=accepted)
    assert answered.accepted == ((GOOD,) if accepted else ())
    assert answered.waiting() == {"windy.1"}
    assert judge(answered, GOOD, 2048) == "doubled"
    assert judge(answered, replace(GOOD, steps=1), 2048) == "doubled", (
        "even if it says something else"
    )


replies = st.builds(
    Reply,
    run=st.sampled_from(["demo-1", "demo-2"]),
    epoch=st.integers(1, 3),
    round=st.integers(6, 8),
    site=st.sampled_from(["solar", "windy", "duck"]),
    session=st.integers(1, 4),
    attempt=st.integers(1, 3),
    base_version=st.none() | st.integers(4, 6),
    steps=st.integers(-1, 8),
    tokens=st.integers(-1, 8).map(lambda steps: steps * 2048),
    update=st.none() | st.just("updates/x"),
    update_sha256=st.sampled_from(["", "u"]),
    error=st.none() | st.just("lost"),
)


@settings(deadline=None)
@given(st.none() | st.just(OPEN), replies)
def test_only_a_prefix_of_the_very_lease_on_the_very_base_is_ever_consumed(current, reply):
    if judge(current, reply, 2048) is not None or reply.steps == 0:
        return
    assert current is not None
    order = current.orders[member(reply.site, reply.session)]
    asked = (order.run, order.epoch, order.round, order.base_version)
    assert (reply.run, reply.epoch, reply.round, reply.base_version) == asked
    assert 0 < reply.steps <= 6
    assert reply.tokens == reply.steps * 2048
    assert reply.error is None
    assert reply.update
    assert reply.update_sha256


@pytest.mark.parametrize(
    ("current", "able", "stopping", "opens"),
    [
        pytest.param(None, ["solar"], False, True, id="somebody-can-train"),
        pytest.param(None, [], False, False, id="nobody-can"),
        pytest.param(OPEN, ["solar"], False, False, id="one-is-open"),
        pytest.param(None, ["solar"], True, False, id="winding-down"),
    ],
)
def test_a_round_opens_when_somebody_can_train_and_none_is_open(current, able, stopping, opens):
    assert should_open(current=current, able=able, stopping=stopping) is opens


@pytest.mark.parametrize(
    ("able", "now", "joining"),
    [
        pytest.param({"solar": 3, "windy": 1}, 0.0, [], id="everybody-was-asked"),
        pytest.param({"solar": 3, "duck": 1}, 0.0, ["duck"], id="a-late-joiner"),
        pytest.param({"solar": 4}, 0.0, ["solar"], id="back-with-a-new-session"),
        pytest.param({"duck": 1}, 3599.9, ["duck"], id="just-before-the-deadline"),
        pytest.param({"duck": 1}, 3600.0, [], id="at-the-deadline"),
        pytest.param({}, 0.0, [], id="nobody-is-able"),
    ],
)
def test_who_is_able_joins_once_and_in_time(able, now, joining):
    assert joiners(OPEN, able, now) == joining


HALF = OPEN.with_answer(GOOD, accepted=True)
FULL = HALF.with_answer(wire.answer(OTHER, error="lost"), accepted=False)
EMPTY = Round(number=7, base_version=5, base="objects/5", deadline=3600.0, close_wall=3620.0)


@pytest.mark.parametrize(
    ("current", "now", "now_wall", "stopping", "closes"),
    [
        pytest.param(FULL, 10.0, 10.0, False, True, id="all-answered-early"),
        pytest.param(HALF, 10.0, 10.0, False, False, id="one-is-out"),
        pytest.param(HALF, 10.0, 10.0, True, False, id="winding-down-waits-for-the-answer"),
        pytest.param(HALF, 3600.0, 3600.0, False, False, id="deadline-leaves-time-to-upload"),
        pytest.param(HALF, 3600.0, 3620.0, False, True, id="patience-ends"),
        pytest.param(HALF, 0.0, 3620.0, True, True, id="patience-ends-by-the-wall-clock-alone"),
        pytest.param(EMPTY, 10.0, 10.0, False, False, id="nobody-asked-yet"),
        pytest.param(EMPTY, 3600.0, 10.0, False, True, id="nobody-asked-until-the-deadline"),
        pytest.param(EMPTY, 10.0, 10.0, True, True, id="nobody-asked-and-winding-down"),
    ],
)
def test_a_round_closes_when_nothing_more_may_come_or_patience_ends(
    current, now, now_wall, stopping, closes
):
    assert should_close(current, now=now, now_wall=now_wall, stopping=stopping) is closes


@pytest.mark.parametrize(
    ("current", "reply", "now_wall", "again"),
    [
        pytest.param(OPEN, GOOD, 0.0, True, id="first-loss"),
        pytest.param(OPEN.with_order(replace(ORDER, attempt=3)), GOOD, 0.0, False, id="too-often"),
        pytest.param(OPEN.with_order(replace(ORDER, attempt=2)), GOOD, 0.0, True, id="once-more"),
        pytest.param(HALF, GOOD, 0.0, False, id="it-has-answered"),
        pytest.param(OPEN, GOOD, 3620.0, False, id="no-time-left"),
        pytest.param(OPEN, replace(GOOD, site="duck"), 0.0, False, id="it-was-never-asked"),
    ],
)
def test_a_lost_answer_is_asked_for_again_while_there_is_time(current, reply, now_wall, again):
    assert may_retry(RoundsSection(attempts=3), current, reply, now_wall) is again


@pytest.mark.parametrize(
    ("every", "version", "evaluated", "wanted"),
    [
        pytest.param(2, 0, [], True, id="the-untrained-model"),
        pytest.param(0, 0, [], True, id="the-untrained-model-even-if-no-other"),
        pytest.param(0, 4, [], False, id="no-other"),
        pytest.param(2, 3, [], False, id="between"),
        pytest.param(2, 4, [0, 2], True, id="the-next-due"),
        pytest.param(2, 4, [4], False, id="done"),
        pytest.param(1, 0, [0], False, id="the-untrained-model-once"),
    ],
)
def test_every_so_many_versions_one_is_validated_once(every, version, evaluated, wanted):
    rounds = RoundsSection(evaluate_every=every)
    assert wants_evaluation(rounds, version=version, evaluated=evaluated) is wanted


def test_a_members_folder_in_the_store_is_its_own_for_each_run_round_and_session():
    variants = [ORDER, OTHER, replace(ORDER, round=8), replace(ORDER, session=4)]
    variants.append(replace(ORDER, run="demo-2"))
    assert len({updates_folder(order) for order in variants}) == len(variants)
    assert updates_folder(ORDER) == "updates/demo-1/000007/solar.3"


@pytest.mark.parametrize(
    "section",
    [
        {"length_s": 0.0},
        {"max_steps": 0},
        {"grace_wall_s": 0.0},
        {"attempts": 0},
        {"evaluate_every": -1},
    ],
    ids=lambda section: next(iter(section)),
)
def test_a_round_that_could_not_be_is_refused(section):
    with pytest.raises(ValidationError):
        RoundsSection.model_validate(section)
