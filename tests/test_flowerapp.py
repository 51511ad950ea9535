"""An experiment as a Flower app: what Flower's own builder takes, and how its ServerApp begins."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from flwr.common.config import get_fused_config_from_dir, parse_config_args
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app, validate

from tests.test_cli import SRC, TOML
from uncurtail.adapters import children
from uncurtail.adapters.flower_commands import ENVIRONMENT, Flower
from uncurtail.attending import alone
from uncurtail.config import ConfigError, load
from uncurtail.flowerapp import check_hosted, make_app, shim
from uncurtail.hosting import Request

SUPERLINK = ["flower.superlink=link.example:8000", "flower.superlink_ca=ca.crt"]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


@pytest.fixture
def app(tiny, tmp_path):
    said = make_app(tiny, SUPERLINK, tmp_path / "app")
    assert said.startswith(f"Next: flwr run {tmp_path / 'app'} CONNECTION")
    assert "link.example:8000" in said
    return tmp_path / "app"


def bundle_of(app, tmp_path) -> zipfile.ZipFile:
    """What `flwr build` makes of it, as `flwr run` does; without a word of warning."""
    environment = children.environment({**ENVIRONMENT, "FLWR_HOME": str(tmp_path / "flwr")})
    command = ["flwr", "build", "--app", str(app)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing" not in done.stdout + done.stderr
    (path,) = tmp_path.glob("*.fab")
    return zipfile.ZipFile(path)


def test_the_app_is_a_bundle_for_flowers_own_builder_with_the_experiment_in_it(app, tiny, tmp_path):
    with bundle_of(app, tmp_path) as bundle:
        names = set(bundle.namelist())
        carried = bundle.read("uncurtail_app/experiment.toml")
    modules = {f"uncurtail_app/{name}.py" for name in ("__init__", "server", "client")}
    assert modules < names
    assert carried == tiny.read_bytes()


def test_flower_finds_the_parts_of_the_app(app):
    settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    parts = settings["tool"]["flwr"]["app"]["components"].values()
    assert len(parts) == 2
    for part in parts:
        assert validate(part, check_module=True, project_dir=app) == (True, None)


def test_the_app_of_uncurtail_run_is_one_too(tmp_path):
    flower = Flower(tmp_path / "private", 1)
    flower.write_home()
    with bundle_of(flower.private / "app", tmp_path) as bundle:
        assert "uncurtail_app/server.py" in bundle.namelist()


def test_the_shim_is_a_serverapp_that_knows_where_its_experiment_is(app):
    found = load_app("uncurtail_app.server:app", ValueError, app)
    assert isinstance(found, ServerApp)
    text = (app / "uncurtail_app" / "server.py").read_text(encoding="utf-8")
    call = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.List))
    assert ast.literal_eval(call) == SUPERLINK


@pytest.mark.parametrize("awkward", ['name="a\\"b"', "name='☃ \U0001f33b \\n'", 'seed=1"""'])
def test_a_setting_is_carried_as_it_was_given(awkward):
    (given,) = (node for node in ast.walk(ast.parse(shim([awkward]))) if isinstance(node, ast.List))
    assert ast.literal_eval(given) == [awkward]


def test_what_flwr_run_sets_comes_to_the_run_as_its_own_settings(app):
    told = parse_config_args(['set="rounds.length_s=600 seed=2" runs="/data/runs"'])
    config = get_fused_config_from_dir(app, told)
    assert config == {"set": "rounds.length_s=600 seed=2", "runs": "/data/runs"}
    request = Request.of(app / "experiment.toml", SUPERLINK, config)
    assert request.settings == (*SUPERLINK, "rounds.length_s=600", "seed=2")
    command = request.command()
    assert command[-2:] == ["--set", "seed=2"]
    assert command[command.index("--runs") + 1] == "/data/runs"


def test_an_app_may_be_written_anew_and_nothing_else_is_written_over(app, tiny, tmp_path):
    tiny.write_text(TOML.replace('"tiny"', '"small"'), encoding="utf-8")
    make_app(tiny, SUPERLINK, app)
    assert load(app / "uncurtail_app" / "experiment.toml", SUPERLINK).name == "small"
    about = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert about["description"].startswith("small: ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="other holds something else: name a new folder"):
        make_app(tiny, SUPERLINK, tmp_path / "other")
    assert (tmp_path / "other" / "pyproject.toml").read_text(encoding="utf-8") == "mine"


def test_an_experiment_that_names_no_superlink_is_refused_with_the_remedy(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"--set flower\.superlink=HOST:PORT --set flower\.super"):
        make_app(tiny, [], tmp_path / "app")
    assert not (tmp_path / "app").exists()
    assert check_hosted(load(tiny, SUPERLINK)) == "link.example:8000"


def attend(tmp_path, parent, *arguments):
    command = [sys.executable, "-m", "uncurtail", "flower", "attend", str(parent), "tiny.toml"]
    return subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_a_supervisor_whose_coordinator_is_gone_already_begins_nothing(tiny, tmp_path):
    done = attend(tmp_path, 1)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not (tmp_path / "runs").exists()


def test_a_supervisor_refuses_to_begin_without_a_superlink(tiny, tmp_path):
    done = attend(tmp_path, os.getpid())
    assert done.returncode == 2
    assert done.stderr.startswith("uncurtail: flower.superlink is not set")


def test_a_superlink_has_one_such_run_at_a_time_also_before_that_has_a_folder(tiny, tmp_path):
    settings = [part for each in SUPERLINK for part in ("--set", each)]
    with alone(tmp_path / "runs", "link.example:8000"):
        refused = attend(tmp_path, os.getpid(), *settings)
        with alone(tmp_path / "runs", "other.example:8000"):
            pass
    assert refused.returncode == 2
    assert refused.stderr == (
        "uncurtail: link.example:8000 has a run that flwr started already (process "
        f"{os.getpid()}): stop that first, with flwr stop, or with kill -INT {os.getpid()}, which "
        "drains\n"
    )
    assert [*(tmp_path / "runs").glob("tiny-*")] == []
    alone_again = attend(tmp_path, os.getpid(), *settings)
    assert "flower.superlink = link.example:8000 does not answer" in alone_again.stderr
