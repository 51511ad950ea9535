"""Where the data of arXiv:2602.22760 lies, if it is here: it may not be part of the project."""

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "paper"
FOLDER = Path(os.environ.get("UNCURTAIL_PAPER_DATA", _BESIDE))

needs_paper = pytest.mark.skipif(
    not (FOLDER / "mci.csv").is_file(),
    reason="the paper's data is not ours to ship: set UNCURTAIL_PAPER_DATA to its folder",
)
