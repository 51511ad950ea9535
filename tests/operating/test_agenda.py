"""Who is due, and who rests."""

from uncurtail.operating.agenda import LONGEST_REST_S, Agenda

A, B = ("ml", "a"), ("ml", "b")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def agenda():
    clock = Clock()
    return Agenda(lambda: None, clock), clock


def test_marked_twice_is_taken_once_and_never_by_two_at_once():
    made, _ = agenda()
    made.mark(A)
    made.mark(A)
    assert made.take() == A
    made.mark(A)
    assert made.take() is None, "it is being worked on"
    made.done(A, 300.0)
    assert made.take() == A, "news that came meanwhile is not lost"


def test_it_comes_again_when_its_plan_said_so():
    made, clock = agenda()
    made.mark(A)
    made.take()
    made.done(A, 5.0)
    assert made.take() is None
    assert made.wait_s(60.0) == 5.0
    clock.now = 5.0
    assert made.take() == A


def test_after_a_failure_it_rests_ever_longer_whatever_happens_around_it():
    made, clock = agenda()
    rests = []
    made.mark(A)
    for _ in range(12):
        assert made.take() == A
        made.done(A, None, failed=True)
        made.mark(A)
        assert made.take() is None
        rests.append(made.wait_s(1e9))
        clock.now += rests[-1]
    assert rests[:4] == [1.0, 2.0, 4.0, 8.0]
    assert rests[-1] == LONGEST_REST_S
    made.mark(B)
    assert {made.take(), made.take()} == {A, B}, "others are not held up"


def test_a_new_spec_ends_the_rest_and_the_server_may_lengthen_it():
    made, clock = agenda()
    made.mark(A)
    made.take()
    made.done(A, 30.0, failed=True)
    assert made.wait_s(1e9) == 30.0
    made.mark(A, fresh=True)
    assert made.take() == A
    made.done(A, 300.0)
    made.mark(A)
    assert made.take() == A
    assert clock.now == 0.0


def test_a_new_spec_that_comes_while_the_old_one_fails_does_not_rest_for_it():
    made, _ = agenda()
    made.mark(A)
    made.take()
    made.mark(A, fresh=True)
    made.done(A, None, failed=True)
    assert made.take() == A
    made.mark(A)
    made.done(A, None, failed=True)
    assert made.take() is None
    assert made.wait_s(1e9) == 1.0, "its own failure is its first"
