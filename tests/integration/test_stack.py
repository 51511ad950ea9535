"""The whole path on real parts: two sites, real Flower, Redis, Vessim, and a model that learns."""

import json
import subprocess
import sys

import pytest

from uncurtail.core.events import (
    Evaluated,
    RoundCommitted,
    RunEnded,
    SitePhase,
    SiteReleased,
    Trouble,
    UpdateRejected,
)

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_two_sites_train_alone_and_together_and_leave_nothing(small_run):
    run = small_run(minutes=110, windows={"north": [(0, 76)], "south": [(22, 110)]})
    run.start()
    assert run.wait(250) == 0, run.output()[-3000:]
    events = run.events()

    assert isinstance(events[-1], RunEnded)
    merges = [e.sites for e in events if isinstance(e, RoundCommitted)]
    assert ["north", "south"] in merges
    assert ["north"] in merges
    assert ["south"] in merges
    assert [e for e in events if isinstance(e, Trouble)] == []
    lost = [e for e in events if isinstance(e, UpdateRejected) and e.steps]
    assert lost == [], "no step is trained in vain"
    assert {e.cause for e in events if isinstance(e, SiteReleased)} == {"drained"}
    assert [e.phase for e in events if isinstance(e, SitePhase)][-1] == "released"

    losses = [e.val_loss for e in events if isinstance(e, Evaluated)]
    assert abs(losses[0] - 6.93) < 0.1  # ln 1024: it starts from nothing
    assert losses[-1] < 6.0
    last = [e.version for e in events if isinstance(e, RoundCommitted)][-1]
    assert last in {e.version for e in events if isinstance(e, Evaluated)}, "the last model, too"
    assert run.living() == []

    summary = json.loads(run.folder.summary.read_text())
    (policy,) = summary["policies"].values()
    assert policy["completed"] is True
    assert policy["provisions"] == 2
    assert policy["in_window_share"] > 0.7  # starts and drains weigh much in so short a run
    assert run.folder.report.read_text().startswith("<!doctype html>")

    command = [sys.executable, "-m", "uncurtail", "verify", str(run.folder.path), "--json"]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)
    checks = json.loads(verified.stdout)["checks"]
    assert [check for check in checks if check["passed"] is False] == []
    unasked = {check["name"] for check in checks if check["passed"] is None}
    assert unasked == {"max-sites", "cost-adds-up"}, "this run sets neither a cap nor a price"
    assert verified.returncode == 0
