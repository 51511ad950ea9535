"""OpenMP's threads soon give a core away: processes that share a machine do not stop each other."""

import os
import subprocess
import sys

import pytest

GIVEN = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}


def spins(**more: str) -> list[str]:
    """What OpenMP says that it has read, in a process where torch comes before all of `lm`."""
    done = subprocess.run(
        [sys.executable, "-c", "import uncurtail.sync.merge"],
        env={**GIVEN, "OMP_DISPLAY_ENV": "VERBOSE", **more},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line.strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not said:
        pytest.skip("this torch brings another OpenMP than GNU's")
    return said


def test_openmp_starts_with_few_spins():
    assert spins() == ["GOMP_SPINCOUNT = '3000'"]


def test_who_sets_another_number_has_it():
    assert spins(GOMP_SPINCOUNT="77") == ["GOMP_SPINCOUNT = '77'"]
