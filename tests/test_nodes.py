"""Machines elsewhere: never two for one session, and every one is deleted in the end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fakecloud import FAULTS, SETTINGS, SETTLE_S, FakeCloud, provisioner
from uncurtail.core.nodes import (
    Create,
    Delete,
    Node,
    NodeState,
    Outcome,
    Tried,
    Wish,
    after,
    decide,
    existing,
    noticed,
    retry_s,
)

NOW = 1000.0
KEY = ("oslo", 3)


def node(state=NodeState.READY, name="n1", site="oslo", session=3) -> Node:
    return Node(site, session, name, state)


def shown(moves) -> list[str]:
    return [
        f"+{move.site}.{move.session}" if isinstance(move, Create) else f"-{move.node.id}"
        for move in moves
    ]


@pytest.mark.parametrize(
    ("observed", "wish", "tried", "moves"),
    [
        pytest.param([], Wish.UP, Tried(), ["+oslo.3"], id="wanted"),
        pytest.param([], None, Tried(), [], id="never-spoken-of"),
        pytest.param([], Wish.GONE, Tried(), [], id="gone-already"),
        pytest.param([node()], Wish.UP, Tried(), [], id="there"),
        pytest.param([node()], None, Tried(), [], id="left-by-an-earlier-coordinator"),
        pytest.param([node()], Wish.GONE, Tried(), ["-n1"], id="to-go"),
        pytest.param([node(NodeState.STARTING)], Wish.GONE, Tried(), ["-n1"], id="to-go-early"),
        pytest.param([node(NodeState.LEAVING)], Wish.GONE, Tried(), [], id="on-its-way-out"),
        pytest.param([node(NodeState.LEAVING)], Wish.UP, Tried(), [], id="wait-until-it-has-left"),
        pytest.param([node(NodeState.PARTIAL)], Wish.UP, Tried(), ["+oslo.3"], id="half-made"),
        pytest.param([node(NodeState.PARTIAL)], Wish.GONE, Tried(), ["-n1"], id="half-made-to-go"),
        pytest.param([node(NodeState.FAILED)], Wish.UP, Tried(), ["-n1"], id="failed"),
        pytest.param([node(NodeState.FAILED)], None, Tried(), ["-n1"], id="failed-left-by-another"),
        pytest.param([], Wish.UP, Tried(unsure_until=NOW + 1), [], id="one-may-still-come"),
        pytest.param([], Wish.UP, Tried(create_at=NOW + 1), [], id="not-yet-again"),
        pytest.param([node()], Wish.GONE, Tried(delete_at=NOW + 1), [], id="not-deleted-again-yet"),
        pytest.param([], Wish.UP, Tried(was_ready=True), [], id="lost-is-lost"),
        pytest.param(
            [node(NodeState.STARTING), node(NodeState.READY, "n2")], Wish.UP, Tried(), ["-n1"],
            id="the-readier-of-two-stays",
        ),
        pytest.param(
            [node(name="n2"), node(name="n1")], None, Tried(), ["-n2"], id="two-alike"
        ),
        pytest.param(
            [node(NodeState.PARTIAL, "n2"), node(NodeState.FAILED)], Wish.UP, Tried(), ["-n1"],
            id="one-move-at-a-time",
        ),
        pytest.param([node(session=2)], Wish.UP, Tried(), [], id="an-older-one-holds-the-gpu"),
        pytest.param([node(site="bern")], Wish.UP, Tried(), ["+oslo.3"], id="another-site"),
    ],
)  # fmt: skip
def test_a_session_moves_one_step_towards_what_is_wanted(observed, wish, tried, moves):
    wishes = {} if wish is None else {KEY: wish}
    assert shown(decide(observed, wishes, {KEY: tried}, NOW)) == moves
    assert shown(decide(observed, wishes, {KEY: tried}, NOW)) == moves, "asked again, the same"


def test_deletions_come_before_creations():
    wishes = {("bern", 1): Wish.UP, KEY: Wish.GONE}
    assert shown(decide([node()], wishes, {}, NOW)) == ["-n1", "+bern.1"]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_attempt_whose_answer_was_lost_may_still_come_true(outcome):
    tried = after(Tried(), Create(*KEY), outcome, SETTINGS, NOW, 0.5)
    sure = outcome is Outcome.REFUSED
    assert (tried.unsure_until > NOW + SETTLE_S - 1) is not sure
    assert (KEY in existing([], {}, {KEY: tried}, looked_at=NOW + SETTLE_S - 1)) is not sure
    assert existing([], {}, {KEY: tried}, looked_at=NOW + SETTLE_S) == set()


def test_one_that_came_ends_the_doubt():
    tried = after(Tried(), Create(*KEY), Outcome.UNSURE, SETTINGS, NOW, 0.5)
    seen = noticed([node(NodeState.STARTING)], {KEY: tried}, NOW + 5)
    assert seen[KEY].unsure_until == NOW + 5
    assert seen[KEY].failures == 1
    ready = noticed([node()], seen, NOW + 9)[KEY]
    assert (ready.failures, ready.was_ready) == (0, True)


def test_what_was_released_is_never_made_again():
    cloud = FakeCloud()
    fleet = provisioner(cloud)
    fleet.provision("oslo", 3)
    fleet.step()
    fleet.release("oslo", 3)
    fleet.provision("oslo", 3)  # a call that was late
    for _ in range(30):
        cloud.advance(5.0)
        fleet.step()
    assert (cloud.made, cloud.nodes, fleet.alive()) == (1, {}, {})


def test_failures_are_retried_ever_later_but_for_ever():
    pauses = [retry_s(failures, SETTINGS, 0.0) for failures in (1, 2, 3, 50, 10**6)]
    assert pauses == [2.0, 4.0, 8.0, 120.0, 120.0]
    assert retry_s(3, SETTINGS, 1.0) == 4.0
    tried = Tried()
    for _ in range(3):
        tried = after(tried, Create(*KEY), Outcome.REFUSED, SETTINGS, NOW, 0.0)
    assert tried.create_at == NOW + 8.0


def test_a_machine_that_fails_again_and_again_is_made_again_ever_later():
    tried = Tried()
    for _ in range(4):
        tried = after(tried, Create(*KEY), Outcome.DONE, SETTINGS, NOW, 0.0)
        tried = noticed([node(NodeState.FAILED)], {KEY: tried}, NOW)[KEY]
        tried = after(tried, Delete(node(NodeState.FAILED)), Outcome.DONE, SETTINGS, NOW, 0.0)
    assert tried.create_at == NOW + 16.0


SITES = ("oslo", "bern")


class Life(RuleBasedStateMachine):
    """A loop that starts and ends sessions on a cloud where anything may fail at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = FakeCloud()
        self.last = dict.fromkeys(SITES, 0)
        self.started: set[tuple[str, int]] = set()  # by the run folder, and not seen to end
        self.fleet = provisioner(self.cloud, SITES)

    def keys(self):
        return {(s, n) for s, numbers in self.fleet.alive().items() for n in numbers}

    @rule(site=st.sampled_from(SITES))
    def provision(self, site):
        """As `core.fleet.reconcile` does it: a new session once nothing is seen of the old."""
        if self.fleet.alive().get(site):
            return
        self.last[site] += 1
        self.started.add((site, self.last[site]))
        self.fleet.provision(site, self.last[site])

    @rule(site=st.sampled_from(SITES))
    def release(self, site):
        for session in self.fleet.alive().get(site, ()):
            self.fleet.release(site, session)

    @rule(looks=st.sampled_from([1, 1, 3, 20]))
    def the_thread_works(self, looks):
        for _ in range(looks):
            self.cloud.advance(SETTINGS.poll_wall_s)
            self.fleet.step()

    @rule(seconds=st.sampled_from([1.0, 5.0, 40.0, 200.0]))
    def time_passes(self, seconds):
        self.cloud.advance(seconds)

    @rule(kind=st.sampled_from(FAULTS["create"]), late_s=st.floats(1.0, SETTLE_S - 1.0))
    def a_creation_will_fail(self, kind, late_s):
        self.cloud.faults["create"] = kind
        self.cloud.late_s = late_s
        self.the_thread_works(1)

    @rule(call=st.sampled_from(["delete", "look"]), data=st.data())
    def a_call_will_fail(self, call, data):
        self.cloud.faults[call] = data.draw(st.sampled_from(FAULTS[call]))

    @precondition(lambda self: self.cloud.nodes)
    @rule(data=st.data(), state=st.sampled_from([NodeState.READY, NodeState.FAILED, None]))
    def a_machine_changes(self, data, state):
        name = data.draw(st.sampled_from(sorted(self.cloud.nodes)))
        if state is None:
            del self.cloud.nodes[name]
        else:
            self.cloud.turn(name, state)

    @rule(looks=st.sampled_from([0, 1]))
    def the_coordinator_crashes(self, looks):
        self.fleet = provisioner(self.cloud, SITES, sorted(self.started))
        self.the_thread_works(looks)

    @invariant()
    def never_two_for_one_session_nor_for_one_site(self):
        assert self.cloud.most_of_a_site <= 1

    @invariant()
    def what_exists_or_may_come_is_not_believed_gone(self):
        alive = self.keys()
        self.started &= alive
        assert {node.key for node in self.cloud.nodes.values()} <= alive
        assert {(site, session) for _, site, session in self.cloud.coming} <= alive

    def teardown(self):
        self.cloud.faults.clear()
        for _ in range(200):
            for site in SITES:
                self.release(site)
            if not self.keys():
                break
            self.cloud.advance(5.0)
            self.fleet.step()
        assert not self.keys()
        assert not self.cloud.nodes
        assert not self.cloud.coming


def test_whatever_fails_nothing_is_doubled_and_nothing_is_left():
    run_state_machine_as_test(
        Life, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )
