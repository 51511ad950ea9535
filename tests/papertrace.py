"""The paper's experiment and its trace: not ours to ship, so tests that need it skip without it."""

from pathlib import Path

import pytest

from tests.paperdata import FOLDER

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "paper.toml"


def paper_trace() -> Path:
    """The CSV file, or a skip that says where it was looked for."""
    path = FOLDER / "mci.csv"
    if not path.is_file():
        pytest.skip(f"no {path}: set UNCURTAIL_PAPER_DATA to a folder with the paper's mci.csv")
    return path
