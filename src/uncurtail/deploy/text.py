"""Documents as a YAML stream that a person can read, and that never changes by itself."""

import json
from collections.abc import Sequence

import yaml

from uncurtail.operator.fields import Manifest


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # its types are not known
    """Text of several lines stays as it is written: an experiment, with its comments."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(documents: Sequence[Manifest]) -> str:
    """As `kubectl apply -f` takes it."""
    # Copied apart: what two places share would become an anchor, of no use to a reader.
    apart = json.loads(json.dumps(documents))
    return str(yaml.dump_all(apart, Dumper=_Dumper, sort_keys=False, width=100))
