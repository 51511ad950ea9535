"""The paper's trace, where it lies: not ours to ship, so tests that need it skip without it."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
REGIONS = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
EXPERIMENT = HERE / "experiments" / "paper.toml"


def paper_trace() -> Path:
    """The CSV file, or a skip that says where it was looked for."""
    default = HERE / ".." / "shared" / "data" / "paper"
    path = Path(os.environ.get("UNCURTAIL_PAPER_DATA", default)) / "mci.csv"
    if not path.is_file():
        pytest.skip(f"no {path}: set UNCURTAIL_PAPER_DATA to a folder with the paper's mci.csv")
    return path
