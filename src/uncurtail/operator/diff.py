"""Wanted against found, for one object: is it as it should be, and can it become so in place?"""

import re
from decimal import Decimal
from enum import StrEnum, auto
from typing import Any

from uncurtail.operator import names
from uncurtail.operator.fields import Manifest
from uncurtail.operator.observed import annotation

_QUANTITY = re.compile(r"([+-]?[0-9.]+)(m|k|[KMGTPE]i?)?")
_SUFFIX = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    **{s: Decimal(10) ** (3 * i) for i, s in enumerate("MGTPE", start=2)},
    **{f"{s}i": Decimal(1024) ** i for i, s in enumerate("KMGTPE", start=1)},
}
# Scale has its own action, and annotations that others add are theirs.
_SCALE = frozenset({"replicas", "federationReplicas"})


class Change(StrEnum):
    """What it takes to make the found object the wanted one."""

    NONE = auto()
    UPDATE = auto()  # it was asked for differently
    REPAIR = auto()  # somebody else changed it
    ORPHAN = auto()  # it has to be made anew, its pods may stay
    REPLACE = auto()  # it has to be made anew, and its pods with it


def change(wanted: Manifest, found: Manifest) -> Change:
    """Compare an object with what it should be; a found one holds the API server's defaults."""
    if _selector(wanted) != _selector(found):
        return Change.REPLACE
    if _headless(wanted) != _headless(found):
        return Change.REPLACE
    if wanted["kind"] == "StatefulSet" and not _same(wanted, found, names.FIXED_HASH):
        return Change.ORPHAN
    if not _same(wanted, found, names.SPEC_HASH):
        return Change.UPDATE
    content = {k: v for k, v in wanted.items() if k not in ("metadata", "apiVersion", "kind")}
    if "spec" in content:
        content["spec"] = {k: v for k, v in content["spec"].items() if k not in _SCALE}
    labels = wanted["metadata"].get("labels") or {}
    found_labels = found["metadata"].get("labels") or {}
    whole = covers(content, found) and labels.items() <= found_labels.items()
    return Change.NONE if whole else Change.REPAIR


def covers(wanted: Any, found: Any) -> bool:
    """Whether all that is wanted is found; more may be found, but not in a list.

    The API server leaves out what is empty or false, and writes quantities its own way.
    """
    if isinstance(wanted, dict):
        theirs = {} if found is None else found
        return isinstance(theirs, dict) and all(
            covers(value, theirs.get(key)) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        items = [] if found is None else found
        same_length = isinstance(items, list) and len(wanted) == len(items)
        return same_length and all(map(covers, wanted, items))
    if wanted == found or (not wanted and not found):
        return True
    return quantity(wanted) is not None and quantity(wanted) == quantity(found)


def quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity ("500m", "1Gi", 2) as a number; None if it is none."""
    if isinstance(value, bool):
        return None
    found = _QUANTITY.fullmatch(str(value))
    if found is None or not found[1].strip("+-.").replace(".", "", 1).isdigit():
        return None
    return Decimal(found[1]) * _SUFFIX[found[2] or ""]


def _same(wanted: Manifest, found: Manifest, key: str) -> bool:
    return annotation(wanted, key) == annotation(found, key)


def _selector(manifest: Manifest) -> Any:
    if manifest["kind"] not in ("StatefulSet", "DaemonSet"):
        return None
    return (manifest.get("spec") or {}).get("selector", {}).get("matchLabels")


def _headless(manifest: Manifest) -> bool:
    spec = manifest.get("spec") or {}
    return manifest["kind"] == "Service" and spec.get("clusterIP") == "None"
