"""The energy commands as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.signalserver import PASSWORD, USER, serving

HERE = Path(__file__).parent.parent
DEMO = str(HERE / "experiments" / "demo.toml")
SECRETS = ("UNCURTAIL_", "WATTTIME_", "ELECTRICITYMAPS_")


@pytest.fixture
def uncurtail(tmp_path):
    def run(*arguments, **env):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(SECRETS)}
        path = str(HERE / "src")
        return subprocess.run(
            [sys.executable, "-m", "uncurtail", "energy", *arguments],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    return run


def test_what_is_fetched_can_be_shown_by_the_line_that_it_prints(uncurtail, tmp_path):
    with serving() as server:
        done = uncurtail(
            "fetch", "--source", "watttime", "--region", "CAISO_NORTH", "--start", "2026-06-01",
            "--end", "2026-06-08", "--set", f"energy.watttime_url={server.url}",
            WATTTIME_USERNAME=USER, WATTTIME_PASSWORD=PASSWORD,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    look = next(line for line in done.stdout.splitlines() if line.startswith("Look: "))
    shown = uncurtail(*look.split()[3:], "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["regions"]["CAISO_NORTH"]["curtailed_share"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "--source", "watttime", "--region", "X"],
         "uncurtail: energy.source 'watttime' needs WATTTIME_USERNAME, or WATTTIME_USERNAME_FILE: "
         "a file with it\n"),
        (["fetch", DEMO], "uncurtail: energy.source is 'synthetic', which needs no fetching: name "
         "another, as --source watttime\n"),
        (["show", "none.csv"],
         "uncurtail: no file none.csv: paths are relative to the current directory\n"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_the_remedy(uncurtail, arguments, message):
    done = uncurtail(*arguments)
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")


def test_showing_imports_neither_torch_nor_flower_nor_scipy():
    script = f"""
import sys
sys.argv = ["uncurtail", "energy", "show", {DEMO!r}, "--json"]
from uncurtail.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end
print(sorted({{"torch", "flwr", "scipy", "httpx"}} & set(sys.modules)), file=sys.stderr)
"""
    env = {**os.environ, "PYTHONPATH": str(HERE / "src")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
