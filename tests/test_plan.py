"""`uncurtail plan`: one command, a table and figures, or one JSON object; and what is refused."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.papertrace import EXPERIMENT
from uncurtail import config as configuration
from uncurtail import wiring
from uncurtail.core.planner import PlanVariant
from uncurtail.core.policy import Lookahead, Threshold
from uncurtail.plan.compare import Best, Row, compare, variants
from uncurtail.plan.simulate import Outcome

SRC = Path(__file__).parent.parent / "src"
TOML = """
name = "tiny"
[clock]
start = "2026-07-24T06:00:00+00:00"
[run]
duration_s = 64800
[energy]
seed = 40
[policy]
enter_below_g_per_kwh = 100.0
[sites.duck]
preset = "duck"
utc_offset_h = -8
[sites.windy]
preset = "windy"
utc_offset_h = -6
[plan]
oracle_time_wall_s = 2.0
[train]
budget_tokens = 1000
"""
KEYS = {
    "makespan_h",
    "energy_kwh",
    "emissions_kg",
    "in_window_share",
    "provisions",
    "train_site_h",
    "completed",
    "gap_to_oracle",
}


pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def plan(tmp_path):
    """Run the command in an empty folder that holds tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "uncurtail", "plan", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SRC), *sys.path]),
                 "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )  # fmt: skip

    return run


def settings(*overrides):
    body = tomllib.loads(TOML)
    for override in overrides:
        configuration.apply_override(body, override)
    return configuration.parse(body, "tiny.toml")


def played(*overrides, names=("threshold",)):
    config = settings(*overrides)
    start = wiring.start_time(config, 0.0)
    return compare(config, wiring.traces(config, start), start, names)


def test_the_json_has_exactly_the_keys_that_scripts_rely_on(plan, tmp_path):
    done = plan("tiny.toml", "--json", "--policies", "threshold,always")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert set(body) == {"policies", "oracle", "baselines"}
    assert list(body["policies"]) == ["threshold", "always"]
    assert all(set(row) == KEYS for row in body["policies"].values())
    assert set(body["oracle"]) == {"emissions_kg", "makespan_h"}
    assert set(body["baselines"]) == {"duck", "windy"}
    works = [row["train_site_h"] for row in body["policies"].values()]
    assert works[0] == pytest.approx(works[1]), "the same work for all"
    assert not (tmp_path / "plans").exists()


def test_a_plan_shows_a_table_writes_figures_and_says_what_to_do_next(plan, tmp_path):
    done = plan("tiny.toml", "--policies", "threshold,lookahead")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "plans").iterdir()
    assert f"plans/{folder.name}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Next: uncurtail plan tiny.toml --sweep ")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "experiment.toml", "resolved.json", "plan.json", "pareto.png",
        "gantt-threshold.png", "gantt-lookahead.png",
    }  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in folder.glob("*.png"))
    assert "threshold" in done.stdout
    assert "always on: windy" in done.stdout
    assert set(json.loads((folder / "plan.json").read_text())["policies"]) == {
        "threshold",
        "lookahead",
    }


def test_a_sweep_plans_once_for_each_value(plan):
    done = plan(
        "tiny.toml", "--json", "--policies", "threshold",
        "--sweep", "policy.enter_below_g_per_kwh=20,100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["sweep"] == "policy.enter_below_g_per_kwh"
    assert list(body["values"]) == ["20", "100"]
    first, second = (value["policies"]["threshold"] for value in body["values"].values())
    assert first["train_site_h"] < second["train_site_h"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["none.toml"], "none.toml: no such file", id="no-file"),
        pytest.param(["tiny.toml", "--policies", "best"], "--policies best: there is ", id="name"),
        pytest.param(["tiny.toml", "--sweep", "seed"], "--sweep seed: write KEY=A,B,C", id="sweep"),
        pytest.param(
            ["tiny.toml", "--sweep", "polcy.kind=1"], "did you mean policy?", id="swept-key"
        ),
        pytest.param(
            ["tiny.toml", "--set", "sites={a={preset='coal'}}"],
            "policy 'threshold' trains nothing within run.duration_s",
            id="nothing-is-ever-that-clean",
        ),
        pytest.param(
            ["tiny.toml", "--set", "run={}"],
            "how much work is it? Give plan.train_site_h",
            id="work",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(plan, arguments, message):
    done = plan(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert done.stderr.startswith("uncurtail: ")
    assert len(done.stderr.splitlines()) == 1


def test_planning_imports_neither_torch_nor_flower(tmp_path):
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    script = """
import sys
import tomllib
sys.argv = ["uncurtail", "plan", "tiny.toml", "--json", "--policies", "threshold"]
from uncurtail.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end
print(sorted({"torch", "flwr", "vessim", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SRC), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_rows_of_its_own_an_experiment_is_compared_with_its_usual_rivals():
    assert list(variants(settings())) == ["threshold", "always", "lookahead", "lookahead-noisy"]
    told = variants(settings("energy.forecast=perfect"))
    assert list(told) == ["threshold", "always", "lookahead"]


def test_rows_of_its_own_stand_alone_and_differ_only_where_they_say():
    rows = variants(
        settings(
            "plan.policies.mine.policy.kind=lookahead",
            "plan.policies.mine.forecast=noisy",
            "plan.policies.old.policy.linger_s=600.0",
        )
    )
    assert rows == {
        "mine": PlanVariant(policy=Lookahead(), forecast="noisy"),
        "old": PlanVariant(policy=Threshold(linger_s=600.0)),
    }


def test_the_work_is_what_the_experiment_s_own_policy_gets_done():
    own = played()
    (row,) = own.rows
    assert row.outcome.completed
    assert own.work_h == pytest.approx(row.outcome.train_site_s / 3600.0)
    assert (row.outcome.end - row.outcome.start) / 3600.0 <= 18.0
    assert played("plan.train_site_h=2.5").work_h == 2.5


def test_two_plans_of_one_seed_are_the_same():
    assert (
        played(names=["lookahead-noisy"]).to_json() == played(names=["lookahead-noisy"]).to_json()
    )


def test_baselines_train_the_same_hours_at_one_site_that_never_waits():
    comparison = played(names=["always"])
    kg = comparison.baselines_kg["duck"]
    assert kg is not None
    assert kg > 0.0
    alone = played("sites={duck={preset='duck', utc_offset_h=-8, provision_s=0}}", names=["always"])
    (row,) = alone.rows
    assert row.to_json()["emissions_kg"] == pytest.approx(alone.baselines_kg["duck"])


@pytest.mark.parametrize(
    ("best", "gap"),
    [
        pytest.param(None, None, id="no-oracle"),
        pytest.param(Best(0.0, 1.0), None, id="nothing-need-be-emitted"),
        pytest.param(Best(0.5, 1.0), -1.0, id="an-outcome-without-emissions"),
    ],
)
def test_the_gap_is_to_the_best_or_unknown(best, gap):
    assert Row("a", Outcome(0.0, 3600.0, True, 0.0, {}), best).gap == gap


def test_the_paper_s_experiment_asks_for_its_trace_in_one_line(plan):
    done = plan(str(EXPERIMENT), "--json")
    assert done.returncode == 2
    assert "no file mci.csv" in done.stderr


def test_no_policy_at_all_is_no_plan(plan):
    done = plan("tiny.toml", "--policies", ",")
    assert done.returncode == 2
    assert "--policies names none: write --policies threshold,lookahead" in done.stderr


@pytest.mark.parametrize("seed", [40, 41])
def test_nothing_is_better_than_the_best_possible(seed):
    """The oracle counts in whole slots: its work is rounded down."""
    comparison = played("run.duration_s=20000", f"energy.seed={seed}", names=["threshold"])
    (row,) = comparison.rows
    assert row.gap is not None
    assert row.gap >= 0.0


def test_a_sweep_draws_each_value_by_its_own_threshold(plan, tmp_path):
    done = plan(
        "tiny.toml", "--policies", "threshold", "--sweep", "policy.enter_below_g_per_kwh=80,120"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "plans").iterdir()
    kept = [json.loads(path.read_text()) for path in sorted(folder.glob("resolved-*.json"))]
    assert {one["policy"]["enter_below_g_per_kwh"] for one in kept} == {80.0, 120.0}
    assert len(list(folder.glob("gantt-*.png"))) == 2
