"""Wanted against actual: every session that was started is ended, and no two live at once."""

import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.virtual import START, Virtual, experiment
from uncurtail.core.events import SitePhase, SiteProvisioned, SiteReleased, unix
from uncurtail.core.fleet import (
    FleetSection,
    Phase,
    Provision,
    Release,
    Seen,
    Site,
    SiteSection,
    SiteState,
    reconcile,
    replay,
)
from uncurtail.core.policy import Verdict

TIMEOUTS = FleetSection(
    provision_timeout_wall_s=300.0, drain_timeout_wall_s=30.0, max_retry_wall_s=60.0
)
SITE = Site("a", provision_s=100.0, timeouts=TIMEOUTS)
NOW = (10_000.0, 50_000.0)  # simulated, wall

# Session 3, in its phase for 120 simulated and 10 wall seconds. "+4": provision session 4;
# "-3": release session 3; "!lost": how the session ended.
TABLE = """
phase         verdict  gone             quiet            ready            stepping         capped           busy             mute
released      train    provisioning+4   released-3       released-3       released-3       released-3       released-3       released-3
released      capped   provisioning+4   released-3       released-3       released-3       released-3       released-3       released-3
released      ready    provisioning+4   released-3       released-3       released-3       released-3       released-3       released-3
released      hold     released         released-3       released-3       released-3       released-3       released-3       released-3
released      rest     released         released-3       released-3       released-3       released-3       released-3       released-3
provisioning  train    released!failed  provisioning+3   idle             provisioning+3   provisioning+3   provisioning+3   provisioning+3
provisioning  capped   released!failed  provisioning+3   idle             provisioning+3   provisioning+3   provisioning+3   provisioning+3
provisioning  ready    released!failed  provisioning+3   idle             provisioning+3   provisioning+3   provisioning+3   provisioning+3
provisioning  hold     released!failed  provisioning+3   idle             provisioning+3   provisioning+3   provisioning+3   provisioning+3
provisioning  rest     released!failed  releasing        releasing        releasing        releasing        releasing        releasing
idle          train    released!lost    idle             idle             training         capped           idle             releasing
idle          capped   released!lost    idle             idle             training         capped           idle             releasing
idle          ready    released!lost    idle             idle             training         capped           idle             releasing
idle          hold     released!lost    idle             idle             training         capped           idle             releasing
idle          rest     released!lost    releasing        releasing        draining         draining         releasing        releasing
training      train    released!lost    idle             idle             training         capped           idle             releasing
training      capped   released!lost    idle             idle             training         capped           idle             releasing
training      ready    released!lost    idle             idle             training         capped           idle             releasing
training      hold     released!lost    idle             idle             training         capped           idle             releasing
training      rest     released!lost    releasing        releasing        draining         draining         releasing        releasing
capped        train    released!lost    idle             idle             training         capped           idle             releasing
capped        capped   released!lost    idle             idle             training         capped           idle             releasing
capped        ready    released!lost    idle             idle             training         capped           idle             releasing
capped        hold     released!lost    idle             idle             training         capped           idle             releasing
capped        rest     released!lost    releasing        releasing        draining         draining         releasing        releasing
draining      train    released!drained releasing        releasing        draining         draining         releasing        releasing
draining      capped   released!drained releasing        releasing        draining         draining         releasing        releasing
draining      ready    released!drained releasing        releasing        draining         draining         releasing        releasing
draining      hold     released!drained releasing        releasing        draining         draining         releasing        releasing
draining      rest     released!drained releasing        releasing        draining         draining         releasing        releasing
releasing     train    released!drained releasing-3      releasing-3      releasing-3      releasing-3      releasing        releasing-3
releasing     capped   released!drained releasing-3      releasing-3      releasing-3      releasing-3      releasing        releasing-3
releasing     ready    released!drained releasing-3      releasing-3      releasing-3      releasing-3      releasing        releasing-3
releasing     hold     released!drained releasing-3      releasing-3      releasing-3      releasing-3      releasing        releasing-3
releasing     rest     released!drained releasing-3      releasing-3      releasing-3      releasing-3      releasing        releasing-3
"""  # noqa: E501
SEEN = {
    "gone": Seen(),
    "quiet": Seen(frozenset({3})),
    "ready": Seen(frozenset({3}), ready=True),
    "stepping": Seen(frozenset({3}), stepping=True),
    "capped": Seen(frozenset({3}), stepping=True, capped=True),
    "busy": Seen(frozenset({3}), busy=True),
    "mute": Seen(frozenset({3}), busy=True, mute=True),
}


def cells():
    header, *rows = (line.split() for line in TABLE.strip().splitlines())
    for phase, verdict, *outcomes in rows:
        for seen, outcome in zip(header[2:], outcomes, strict=True):
            yield pytest.param(
                Phase(phase), Verdict(verdict), SEEN[seen], outcome, id=f"{phase}-{verdict}-{seen}"
            )


def in_phase(phase, **changes) -> SiteState:
    state = SiteState(phase, session=3, since=NOW[0] - 120.0, since_wall=NOW[1] - 10.0)
    up_since = None if phase is Phase.RELEASED else NOW[0] - 500.0
    return replace(state, up_since=up_since, **changes)


def outcome_of(step) -> str:
    text = str(step.state.phase)
    for action in step.actions:
        text += ("+" if isinstance(action, Provision) else "-") + str(action.session)
    return text if step.released_as is None else f"{text}!{step.released_as}"


def test_the_table_holds_every_phase_verdict_and_sight():
    assert len({cell.id for cell in cells()}) == len(Phase) * len(Verdict) * len(SEEN)


@pytest.mark.parametrize(("phase", "verdict", "seen", "outcome"), [*cells()])
def test_a_site_moves_one_step_towards_its_verdict(phase, verdict, seen, outcome):
    state = in_phase(phase)
    step = reconcile(SITE, state, verdict, seen, NOW)
    assert outcome_of(step) == outcome
    assert reconcile(SITE, state, verdict, seen, NOW) == step, "asked again, it says the same"


@pytest.mark.parametrize(("phase", "verdict", "seen", "outcome"), [*cells()])
def test_what_was_asked_for_is_asked_for_again_until_it_is_seen(phase, verdict, seen, outcome):
    first = reconcile(SITE, in_phase(phase), verdict, seen, NOW)
    later = (NOW[0] + 60.0, NOW[1] + 60.0)
    again = reconcile(SITE, first.state, verdict, seen, later)
    releases = {action for action in first.actions if isinstance(action, Release)}
    assert releases <= set(again.actions)


def test_a_mute_session_that_is_gone_was_lost_and_one_that_still_steps_is_left_to_it():
    gone = reconcile(SITE, in_phase(Phase.RELEASING), Verdict.TRAIN, Seen(mute=True), NOW)
    assert (gone.released_as, gone.state.failures) == ("lost", 1)
    steps = Seen(frozenset({3}), stepping=True, mute=True)
    assert reconcile(SITE, in_phase(Phase.IDLE), Verdict.TRAIN, steps, NOW).actions == ()


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("phase", list(Phase))
def test_strays_are_released_whatever_their_site_does(phase, verdict):
    seen = Seen(frozenset({1, 3, 7}), ready=True)
    step = reconcile(SITE, in_phase(phase), verdict, seen, NOW)
    strays = {Release("a", 1), Release("a", 7)}
    assert strays <= set(step.actions)
    assert not any(isinstance(a, Provision) and a.session != 3 for a in step.actions)


def test_no_session_is_started_while_a_stray_lives():
    step = reconcile(SITE, in_phase(Phase.RELEASED), Verdict.TRAIN, Seen(frozenset({2})), NOW)
    assert step.actions == (Release("a", 2),)
    assert step.state == in_phase(Phase.RELEASED)


def test_a_start_takes_at_least_what_the_site_declares():
    started = in_phase(Phase.PROVISIONING, since=NOW[0] - 99.9)
    step = reconcile(SITE, started, Verdict.TRAIN, SEEN["ready"], NOW)
    assert outcome_of(step) == "provisioning+3"


def test_a_start_that_hangs_is_given_up_and_tried_again_after_a_while():
    hung = in_phase(Phase.PROVISIONING, since_wall=NOW[1] - 300.1)
    step = reconcile(SITE, hung, Verdict.TRAIN, SEEN["quiet"], NOW)
    assert outcome_of(step) == "provisioning-3", "held until the session is seen gone"
    ended = reconcile(SITE, step.state, Verdict.TRAIN, SEEN["gone"], NOW)
    assert outcome_of(ended) == "released!failed"
    assert outcome_of(reconcile(SITE, ended.state, Verdict.TRAIN, Seen(), NOW)) == "released"
    later = (NOW[0], NOW[1] + 1.0)
    assert outcome_of(reconcile(SITE, ended.state, Verdict.TRAIN, Seen(), later)) == (
        "provisioning+4"
    )


@pytest.mark.parametrize(
    ("failures", "wait_s"), [(0, 1.0), (1, 2.0), (4, 16.0), (6, 60.0), (50, 60.0), (5000, 60.0)]
)
def test_each_failure_doubles_the_wait_up_to_a_bound(failures, wait_s):
    state = in_phase(Phase.IDLE, failures=failures)
    ended = reconcile(SITE, state, Verdict.TRAIN, Seen(), NOW).state
    assert ended.failures == failures + 1
    assert ended.retry_wall == NOW[1] + wait_s


def test_a_session_that_became_ready_forgives_earlier_failures():
    state = in_phase(Phase.PROVISIONING, failures=3)
    assert reconcile(SITE, state, Verdict.TRAIN, SEEN["ready"], NOW).state.failures == 0


def test_a_site_that_was_drained_may_start_again_at_once():
    ended = reconcile(SITE, in_phase(Phase.RELEASING), Verdict.TRAIN, Seen(), NOW).state
    assert outcome_of(reconcile(SITE, ended, Verdict.TRAIN, Seen(), NOW)) == "provisioning+4"


def test_patience_with_a_drain_ends():
    stuck = Seen(frozenset({3}), stepping=True, busy=True)
    state = in_phase(Phase.TRAINING)
    asked = 0
    for second in range(100):
        step = reconcile(SITE, state, Verdict.REST, stuck, (NOW[0], NOW[1] + second))
        state = step.state
        asked += Release("a", 3) in step.actions
    assert state.phase is Phase.RELEASING
    assert asked >= 100 - 2 * 30.0 - 4


@pytest.mark.parametrize(
    ("phase", "watts"),
    [
        (Phase.RELEASED, 0.0),
        (Phase.PROVISIONING, 7.0),
        (Phase.IDLE, 5.0),
        (Phase.RELEASING, 5.0),
        (Phase.TRAINING, 9.0),
        (Phase.DRAINING, 9.0),
    ],
)
def test_every_phase_draws_its_power(phase, watts):
    site = SiteSection(idle_power_w=5.0, train_power_w=9.0, provision_power_w=7.0)
    assert site.power_w(phase) == watts
    if phase is Phase.PROVISIONING:
        assert SiteSection(idle_power_w=5.0).power_w(phase) == 5.0
        assert SiteSection(idle_power_w=5.0, provision_power_w=0.0).power_w(phase) == 0.0


class Fleet(RuleBasedStateMachine):
    """One site in a world that loses commands, crashes sessions and lets dead ones reappear."""

    @initialize()
    def nothing_exists(self):
        self.state = SiteState()
        self.exists: set[int] = set()
        self.started: list[int] = []
        self.ended: list[int] = []
        self.now = NOW

    @rule(
        verdict=st.sampled_from(Verdict),
        ready=st.booleans(),
        stepping=st.booleans(),
        busy=st.booleans(),
        seconds=st.sampled_from([0.0, 1.0, 10.0, 100.0, 400.0]),
        lost=st.booleans(),
    )
    def tick(self, verdict, ready, stepping, busy, seconds, lost):
        self.now = (self.now[0] + seconds, self.now[1] + seconds)
        seen = Seen(frozenset(self.exists), ready=ready, stepping=stepping, busy=busy)
        self.act(verdict, seen, lost=lost)

    def act(self, verdict, seen, *, lost):
        before = self.state
        step = reconcile(SITE, before, verdict, seen, self.now)
        self.state = step.state
        assert step.state.session >= before.session
        if step.released_as is not None:
            assert before.session not in seen.sessions, "it is gone, not only asked to go"
            self.ended.append(before.session)
        for action in step.actions:
            if isinstance(action, Release):
                assert action.session in seen.sessions
                if not lost:
                    self.exists.discard(action.session)
                continue
            if action.session not in self.started:
                assert not seen.sessions, "another session is still alive"
                assert action.session > max(self.started, default=0)
                self.started.append(action.session)
            if not lost:
                self.exists.add(action.session)

    @precondition(lambda self: self.exists)
    @rule()
    def crash(self):
        self.exists.clear()

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def reappear(self, data):
        self.exists.add(data.draw(st.sampled_from(self.ended)))

    def teardown(self):
        if not hasattr(self, "exists"):
            return
        for _ in range(20):
            self.now = (self.now[0] + 10.0, self.now[1] + 10.0)
            self.act(Verdict.REST, Seen(frozenset(self.exists)), lost=False)
        assert self.exists == set(), "a site is left running"
        assert self.state.phase is Phase.RELEASED
        assert self.ended == self.started, "each session ends exactly once"


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("seed", range(3))
def test_a_new_coordinator_believes_what_the_old_one_did(seed, tmp_path):
    rng = random.Random(seed)
    run = Virtual(tmp_path, experiment(run={"duration_s": 3 * 3600.0}))
    for _ in range(6):
        run.until(run.t + rng.uniform(60.0, 3600.0))
        run.sites.kill(rng.choice(list(run.settings.sites)))
        run.until(run.t + rng.uniform(0.0, 5.0))
        believed = {
            site: replace(state, failures=0, retry_wall=0.0)
            for site, state in run.loop._states.items()
        }
        assert replay(run.settings.sites, run.folder.read_events()) == believed
    run.close()


def test_events_of_other_sites_and_earlier_sessions_change_nothing():
    at = {"t": unix(START), "wall_s": 1.0}
    events = [
        SiteProvisioned(**at, site="a", session=1),
        SitePhase(**at, site="a", session=1, phase="provisioning", power_w=1.0),
        SiteReleased(**at, site="a", session=0, cause="stray"),
        SiteProvisioned(**at, site="gone-from-the-experiment", session=9),
    ]
    expected = SiteState(Phase.PROVISIONING, 1, at["t"], 1.0, up_since=at["t"])
    assert replay(["a", "b"], events) == {"a": expected, "b": SiteState()}
