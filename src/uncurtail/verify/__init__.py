"""A run folder against the invariants: independent records are compared, one check at a time.

`verify` never raises: a file that is missing or damaged fails the checks that need it, by name.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from uncurtail.runfolder import RunFolder
from uncurtail.verify.chain import commit_chain, objects
from uncurtail.verify.energy import emissions_add_up, energy_adds_up
from uncurtail.verify.evidence import DAMAGE, Evidence, EvidenceError, Finding
from uncurtail.verify.money import cost_adds_up
from uncurtail.verify.own import own_power
from uncurtail.verify.record import events_readable, nothing_public
from uncurtail.verify.sites import no_more_than_may_be, provision_release
from uncurtail.verify.steps import consumed_matches, steps_once, token_hashes
from uncurtail.verify.windows import known_power, only_in_windows

__all__ = ["CHECKS", "Check", "report_lines", "to_json", "verify"]


@dataclass(frozen=True, slots=True)
class Check:
    """One named check; `passed` None: it could not be made here, and `detail` says why."""

    name: str
    passed: bool | None
    detail: str


CHECKS: tuple[tuple[str, Callable[[Evidence], Finding]], ...] = (
    ("commit-chain", commit_chain),
    ("objects", objects),
    ("steps-once", steps_once),
    ("consumed-matches", consumed_matches),
    ("token-hashes", token_hashes),
    ("provision-release", provision_release),
    ("max-sites", no_more_than_may_be),
    ("energy-adds-up", energy_adds_up),
    ("emissions-add-up", emissions_add_up),
    ("own-power", own_power),
    ("cost-adds-up", cost_adds_up),
    ("only-in-windows", only_in_windows),
    ("known-power", known_power),
    ("events-readable", events_readable),
    ("nothing-public", nothing_public),
)

_MARKS: MappingProxyType[bool | None, str] = MappingProxyType({True: "✓", False: "✗", None: "-"})


def verify(
    folder: RunFolder, *, recompute_tokens: bool = True, tolerance_s: float | None = None
) -> list[Check]:
    """Every check of `CHECKS`, in order.

    Args:
        folder: The run; it may still be going on.
        recompute_tokens: Read the accepted steps' tokens from the corpus again (needs torch).
        tolerance_s: How long (simulated) training may outlast its window. Unset: two wall
            seconds, by the run's clock.
    """
    run = Evidence(folder, recompute_tokens=recompute_tokens, tolerance_s=tolerance_s)
    return [_checked(name, check, run) for name, check in CHECKS]


def report_lines(checks: Iterable[Check]) -> list[str]:
    """One line a check, for a terminal."""
    rows = list(checks)
    width = max((len(check.name) for check in rows), default=0)
    return [f"{_MARKS[check.passed]} {check.name:<{width}}  {check.detail}" for check in rows]


def to_json(checks: Iterable[Check]) -> dict[str, Any]:
    """{"passed": nothing failed, "checks": [...]}; what could not be checked did not fail."""
    rows = list(checks)
    passed = all(check.passed is not False for check in rows)
    return {"passed": passed, "checks": [asdict(check) for check in rows]}


def _checked(name: str, check: Callable[[Evidence], Finding], run: Evidence) -> Check:
    try:
        finding = check(run)
    except EvidenceError as error:
        return Check(name, False, str(error))
    except DAMAGE as error:  # a value of another type than any writer writes
        what = f"{type(error).__name__}: {error}"
        return Check(name, False, f"a value in the run folder makes no sense ({what}): restore it")
    return Check(name, finding.passed, finding.detail)
