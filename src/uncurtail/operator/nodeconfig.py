"""A pool's nodeConfig as the one argument that Flower reads: `key=value` pairs in TOML.

What differs between the pods of a pool ({index}, {node}) stays a reference to an environment
variable, which the kubelet fills in: no shell, so nothing has to be quoted for one.
"""

import re
from collections.abc import Mapping

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# Whole numbers and booleans as TOML writes them; anything else is a string.
_BARE = re.compile(r"true|false|[+-]?(0|[1-9][0-9]*)")
PER_POD = {"index": "$(FLOWER_INDEX)", "node": "$(FLOWER_NODE_NAME)"}


def node_config(values: Mapping[str, str], *, pool: str, partitions: int) -> str | None:
    """The argument of --node-config, sorted by key; None if there is nothing to say."""
    if not values:
        return None
    fixed = {"pool": pool, "replicas": str(partitions)}
    return " ".join(f"{key}={_value(values[key], fixed)}" for key in sorted(values))


def uses(values: Mapping[str, str], name: str) -> bool:
    """Whether some value needs this placeholder."""
    return any(name in PLACEHOLDER.findall(value) for value in values.values())


def _value(value: str, fixed: Mapping[str, str]) -> str:
    # An {index} alone is a number once the kubelet has filled it in.
    if value == "{index}":
        return PER_POD["index"]
    known = {**PER_POD, **fixed}
    text = "".join(
        known.get(part, f"{{{part}}}") if number % 2 else _escaped(part)
        for number, part in enumerate(PLACEHOLDER.split(value))
    )
    return text if _BARE.fullmatch(text) else f'"{text}"'


def _escaped(text: str) -> str:
    # Flower's pattern ends a value at the next double quote, escaped or not: \u0022 has none.
    # The kubelet would fill in $(NAME); $$ keeps it.
    return "".join(
        "$$" if char == "$" else f"\\u{ord(char):04x}" if char in '\\"\x7f' or char < " " else char
        for char in text
    )
