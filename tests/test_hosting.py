"""The ServerApp of a whole run, and its supervisor: what that says and how it fails."""

import os
import sys

import pytest

from tests.test_post_office import Grid
from uncurtail.adapters.flower_server import PostOffice
from uncurtail.coordinator import coordinate_named
from uncurtail.errors import UserError
from uncurtail.hosting import Attendant
from uncurtail.runfolder import RUN_DIR


def attendant(program: str) -> Attendant:
    return Attendant([sys.executable, "-uc", program])


def test_what_the_supervisor_says_is_said_to_the_last_line(capsys):
    # Longer than a look takes: a line may come in pieces.
    child = attendant(
        "import sys, time; print('Run', end=' '); time.sleep(0.6); print('folder: ☃  ');"
        "time.sleep(0.3); sys.stderr.write('done\\n')"
    )
    with child.speaking():
        child.ended()
    assert capsys.readouterr().out == "Run folder: ☃\ndone\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(
            "print('Preparing'); raise SystemExit('uncurtail: a\\nuncurtail: b')",
            "a\nb",
            id="what-must-be-mended",
        ),
        pytest.param("raise OSError('x')", "OSError: x", id="what-nobody-expected"),
        pytest.param("raise SystemExit(1)", "the supervisor said nothing", id="nothing"),
    ],
)
def test_a_supervisor_that_fails_is_told_by_what_it_said_last(tmp_path, program, message):
    child = attendant(program)
    with child.speaking(), pytest.raises(UserError) as told:
        child.begun(tmp_path, "tiny")
    assert str(told.value) == message


@pytest.mark.parametrize("code", [0, 130])
def test_a_supervisor_that_ends_or_was_drained_has_not_failed(code):
    child = attendant(f"raise SystemExit({code})")
    with child.speaking():
        child.ended()


def test_the_app_of_uncurtail_run_says_so_where_another_superexec_was_given_it():
    assert RUN_DIR not in os.environ
    with pytest.raises(UserError, match=r"End that SuperExec first, or start with flwr run"):
        coordinate_named(PostOffice(Grid(bad=0, error=OSError())))  # type: ignore[arg-type]
