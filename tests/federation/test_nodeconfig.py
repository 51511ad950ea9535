"""What a pool's nodeConfig says arrives at the SuperNode, whatever characters it has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.federation.flower import parse_config_args
from tests.federation.kubelet import expanded
from uncurtail.operator.nodeconfig import node_config, uses

ENV = {"FLOWER_INDEX": "3", "FLOWER_NODE_NAME": "node-7"}


def received(values, pool="gpu", partitions=4):
    said = node_config(values, pool=pool, partitions=partitions)
    assert said is not None
    return parse_config_args([expanded(said, ENV)])


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ("7", 7),
        ("-7", -7),
        ("007", "007"),
        ("true", True),
        ("0.5", "0.5"),
        ("plain", "plain"),
        ("two words", "two words"),
        ("{index}", 3),
        ("{replicas}", 4),
        ("{pool}", "gpu"),
        ("{node}", "node-7"),
        ("{pool}-{index}@{node}", "gpu-3@node-7"),
        ("{other}", "{other}"),
        ("", ""),
        ("$(FLOWER_INDEX)", "$(FLOWER_INDEX)"),
        ("it's", "it's"),
    ],
)
def test_a_value_arrives_as_it_was_meant(value, arrives):
    assert received({"key": value}) == {"key": arrives}


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True), st.text()))
def test_no_character_of_a_value_breaks_out_of_it(values):
    texts = {key: f"<{value}>".replace("{", "(") for key, value in values.items()}
    if texts:
        assert received(texts) == texts


def test_keys_are_sorted_so_that_equal_specs_give_equal_pods():
    one = node_config({"b": "1", "a": "2"}, pool="p", partitions=1)
    assert one == node_config({"a": "2", "b": "1"}, pool="p", partitions=1) == "a=2 b=1"


def test_nothing_to_say_is_no_argument():
    assert node_config({}, pool="p", partitions=1) is None


def test_only_a_placeholder_counts_as_used():
    assert uses({"a": "x{index}"}, "index")
    assert not uses({"a": "index"}, "index")
