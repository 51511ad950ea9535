"""Orders and replies are one JSON line each; what is none of ours is a ValueError, never more."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail import wire
from uncurtail.core.rounds import Order, Reply

counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e12)
words = st.text(max_size=20)
intervals = st.lists(st.tuples(counts, counts, counts), max_size=4).map(tuple)
orders = st.builds(
    Order,
    run=words,
    epoch=counts,
    round=counts,
    site=words,
    session=counts,
    attempt=counts,
    base_version=st.none() | counts,
    base=st.none() | words,
    intervals=intervals,
    train_for_wall_s=seconds,
    not_after_wall=seconds,
    tokens_at_start=counts,
    sites=counts,
    evaluate=st.booleans(),
)
replies = st.builds(
    Reply,
    run=words,
    epoch=counts,
    round=counts,
    site=words,
    session=counts,
    attempt=counts,
    base_version=st.none() | counts,
    steps=counts,
    tokens=counts,
    mean_loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    token_sha256=words,
    update=st.none() | words,
    update_sha256=words,
    val_loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    error=st.none() | words,
)


@settings(deadline=None)
@given(orders)
def test_an_order_arrives_as_it_was_sent(order):
    assert wire.decode_order(wire.encode(order)) == order


@settings(deadline=None)
@given(replies)
def test_a_reply_arrives_as_it_was_sent(reply):
    assert wire.decode_reply(wire.encode(reply)) == reply


@settings(deadline=None)
@given(orders | replies)
def test_a_message_is_one_line_whatever_it_holds(message):
    assert "\n" not in wire.encode(message)
    assert "\r" not in wire.encode(message)


ORDER = Order(
    run="demo-1",
    epoch=2,
    round=7,
    site="solar",
    session=3,
    attempt=2,
    base_version=5,
    base="objects/5",
    intervals=((0, 10, 14),),
    train_for_wall_s=60.0,
    not_after_wall=1060.0,
    tokens_at_start=0,
    sites=2,
    evaluate=True,
)
REPLY = wire.answer(ORDER, steps=4, tokens=8192, mean_loss=2.5, update="updates/x")


def test_an_answer_carries_the_identity_of_its_order_and_nothing_invented():
    assert wire.answer(ORDER, error="out of memory") == Reply(
        run="demo-1",
        epoch=2,
        round=7,
        site="solar",
        session=3,
        attempt=2,
        base_version=5,
        steps=0,
        tokens=0,
        mean_loss=None,
        token_sha256="",
        update=None,
        update_sha256="",
        val_loss=None,
        error="out of memory",
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_sent(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        wire.encode(replace(REPLY, mean_loss=value))


def changed(message, **fields) -> str:
    return json.dumps({**json.loads(wire.encode(message)), **fields})


def without(message, name) -> str:
    body = json.loads(wire.encode(message))
    del body[name]
    return json.dumps(body)


NO_MESSAGES = [
    pytest.param("", id="empty"),
    pytest.param("{", id="torn"),
    pytest.param("null", id="null"),
    pytest.param("[]", id="list"),
    pytest.param('"order"', id="text"),
    pytest.param("{}", id="no-fields"),
]


@pytest.mark.parametrize(
    "text",
    [
        *NO_MESSAGES,
        pytest.param(wire.encode(REPLY), id="a-reply"),
        pytest.param(without(ORDER, "intervals"), id="field-missing"),
        pytest.param(changed(ORDER, deadline=1.0), id="field-unknown"),
        pytest.param(changed(ORDER, intervals=[[0, 1]]), id="interval-of-two"),
        pytest.param(changed(ORDER, intervals=[[0, 1, "x"]]), id="interval-of-words"),
        pytest.param(changed(ORDER, intervals=[[0, 1, None]]), id="interval-open-at-its-end"),
        pytest.param(changed(ORDER, intervals=7), id="no-intervals"),
        pytest.param(changed(ORDER, round="7"), id="number-as-text"),
    ],
)
def test_what_is_no_order_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        wire.decode_order(text)


@pytest.mark.parametrize(
    "text",
    [
        *NO_MESSAGES,
        pytest.param(wire.encode(ORDER), id="an-order"),
        pytest.param(without(REPLY, "error"), id="field-missing"),
        pytest.param(changed(REPLY, grade="A"), id="field-unknown"),
        pytest.param(changed(REPLY, steps="4"), id="number-as-text"),
        pytest.param(changed(REPLY, steps=4.5), id="half-a-step"),
        pytest.param(changed(REPLY, steps=None), id="nothing-for-a-number"),
        pytest.param(changed(REPLY, steps=[4]), id="list-for-a-number"),
        pytest.param(changed(REPLY, site=7), id="number-for-a-name"),
        pytest.param(changed(REPLY, mean_loss="low"), id="word-for-a-loss"),
        pytest.param(changed(REPLY, mean_loss=math.nan), id="nan"),
        pytest.param(wire.encode(REPLY).replace("2.5", "1e999"), id="overflow"),
    ],
)
def test_what_is_no_reply_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r".") as refusal:
        wire.decode_reply(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
