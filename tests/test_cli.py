"""The command line: what a user gets wrong is one line with its remedy, before anything starts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runmaker import Spec, make_run
from uncurtail import __version__
from uncurtail.adapters import children
from uncurtail.config import dump, load
from uncurtail.runfolder import RunFolder

SRC = Path(__file__).parent.parent / "src"
TOML = """
name = "tiny"
[clock]
start = "2026-01-11T17:00:00+00:00"
speed = 600.0
[run]
duration_s = 3600
[sites.duck]
preset = "duck"
region = "NORTH"
[data]
source = "grammar"
documents = 60
val_share = 0.2
[model]
depth = 1
vocab_size = 300
sequence_length = 32
[train]
budget_tokens = 1000
batch_sequences = 2
[store]
min_free_bytes = 1000
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def uncurtail(tmp_path, cache):
    """Run the command in an empty folder that holds tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")

    def run(*arguments, **env):
        return subprocess.run(
            [sys.executable, "-m", "uncurtail", *arguments],
            cwd=tmp_path,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("UNCURTAIL_")},
                "PYTHONPATH": str(SRC),
                "XDG_CACHE_HOME": str(cache),
                "COLUMNS": "100",
                **env,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    return run


def complaint(done) -> str:
    """What was said, after checking that it was said as it should be."""
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("uncurtail: ") for line in lines)
    return "\n".join(line.removeprefix("uncurtail: ") for line in lines)


def nothing_was_started(folder) -> bool:
    runs = [path.name for path in (folder / "runs").glob("tiny-*")]
    return not any(children.marked(name) for name in runs)


def test_help_and_version_import_neither_torch_nor_flower():
    script = """
import sys
sys.argv = ["uncurtail", sys.argv[1]]
from uncurtail.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end
print(sorted({"torch", "flwr", "redis", "vessim", "pandas", "matplotlib"} & set(sys.modules)))
"""
    for argument in ("--help", "version"):
        done = subprocess.run(
            [sys.executable, "-c", script, argument],
            env={**os.environ, "PYTHONPATH": str(SRC)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "statement",
    ["import uncurtail", "import uncurtail.config, uncurtail.core.fleet, uncurtail.runfolder"],
)
def test_importing_the_package_and_its_configuration_needs_no_torch(statement):
    script = f"{statement}\nimport sys\nprint({{'torch', 'flwr'}} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_help_names_every_command_and_where_to_start(uncurtail):
    done = uncurtail("--help")
    assert done.returncode == 0
    for word in ("run", "report", "verify", "doctor", "experiments/demo.toml"):
        assert word in done.stdout
    assert uncurtail("version").stdout == f"{__version__}\n"


WRONG = [
    pytest.param(
        ["--set", "seeed=1"], "tiny.toml: seeed: unknown key; did you mean seed?", id="key"
    ),
    pytest.param(
        ["--set", "sites.duck.train_power_w=-1", "--set", "clock.speed=0"],
        "tiny.toml: clock.speed = 0: Input should be greater than 0\n"
        "tiny.toml: sites.duck.train_power_w = -1: Input should be greater than or equal to 0",
        id="negative-power-and-no-speed",
    ),
    pytest.param(
        ["--set", "store.min_free_bytes=1_000_000_000_000_000"],
        "GB free, a run needs 1000000.0 (store.min_free_bytes): make room, or choose another "
        "place with --runs",
        id="too-little-disk",
    ),
    pytest.param(["--resume"], "no run of tiny below runs: leave out --resume", id="no-run"),
    pytest.param(
        ["--set", "energy.source=csv", "--set", "energy.path=none.csv"],
        "no file none.csv: paths are relative to the current directory",
        id="no-trace",
    ),
    pytest.param(["--set", "data.documents=1"], "raise data.documents", id="too-little-data"),
    pytest.param(["--set", "seed"], "--set seed: write --set section.key=value", id="no-value"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_with_a_run_is_said_before_it_starts(uncurtail, tmp_path, arguments, message):
    done = uncurtail("run", "tiny.toml", *arguments)
    assert message in complaint(done)
    assert "Run folder" not in done.stdout
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["run", "none.toml"], "none.toml: no such file; experiments/ holds", id="run"),
        pytest.param(["run", "."], ". is a folder; name a TOML file", id="run-a-folder"),
        pytest.param(
            ["report", "none"], "none is no run folder: name one below runs/", id="report"
        ),
        pytest.param(["verify", "."], ". is no run folder: name one below runs/", id="verify"),
    ],
)
def test_what_is_not_there_is_named(uncurtail, arguments, message):
    assert message in complaint(uncurtail(*arguments))


HEADER = "time,NORTH"
GOOD = [f"2026-01-11T{17 + n // 12}:{n % 12 * 5:02}:00+00:00,{50 + n}" for n in range(24)]


def replaced(line, row) -> list[str]:
    rows = list(GOOD)
    rows[line - 2] = row
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            GOOD[:4] + GOOD[20:],
            "mci.csv:6: 5100 s without a row where 300 s are usual, after "
            "2026-01-11T17:15:00+00:00: fill it, or set energy.allow_gaps to count it as unknown",
            id="gap",
        ),
        pytest.param(
            replaced(4, "2026-01-11T17:10:00+00:00,nan"),
            "mci.csv:4: NORTH is 'nan', no number: delete the row and set energy.allow_gaps",
            id="nan",
        ),
        pytest.param(replaced(4, GOOD[1]), "mci.csv:4: time 2026-01-11T17:05", id="duplicate"),
        pytest.param(
            replaced(4, "2026-01-11T17:10:00,50"),
            "mci.csv:4: '2026-01-11T17:10:00' names no time zone: write an offset such as +00:00",
            id="no-zone",
        ),
    ],
)
def test_a_trace_that_could_mislead_is_refused(uncurtail, tmp_path, rows, message):
    (tmp_path / "mci.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    done = uncurtail(
        "run", "tiny.toml", "--set", "energy.source=csv", "--set", "energy.path=mci.csv"
    )
    said = complaint(done)
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.glob("runs/*"))


@pytest.fixture
def begun(uncurtail, tmp_path):
    """A run of tiny.toml that began with other data than there is now."""
    folder = RunFolder(tmp_path / "runs" / "tiny-20260101-000000")
    folder.create()
    folder.resolved.write_text(dump(load(tmp_path / "tiny.toml", [])), encoding="utf-8")
    note = {"folder": "elsewhere", "manifest_sha256": "0" * 64}
    (folder.path / "data.json").write_text(json.dumps(note), encoding="utf-8")
    return folder


def test_a_run_goes_on_with_the_settings_it_began_with(uncurtail, begun):
    said = complaint(uncurtail("run", "tiny.toml", "--resume", "--set", "seed=2"))
    assert said == (
        "a run goes on with the settings that it began with (resolved.json): leave out --set, or "
        "leave out --resume for a new run"
    )


def test_a_run_goes_on_with_the_data_it_began_with_or_not_at_all(uncurtail, begun):
    said = complaint(uncurtail("run", "tiny.toml", "--resume"))
    assert "holds other data than tiny-20260101-000000 began with in elsewhere" in said
    assert json.loads((begun.path / "data.json").read_text())["folder"] == "elsewhere"
    assert nothing_was_started(begun.path.parent.parent)


def test_a_port_that_is_taken_is_refused(uncurtail, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = uncurtail("run", "tiny.toml", "--set", f"flower.port={port}")
    assert complaint(done) == (
        f"flower.port = {port} is taken: choose another, or 0 for a free one (--set flower.port=0)"
    )
    assert nothing_was_started(tmp_path)


def test_a_superlink_that_does_not_answer_is_refused(uncurtail, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = complaint(
        uncurtail(
            "run", "tiny.toml", "--set", f"flower.superlink=127.0.0.1:{port}",
            "--set", "flower.superlink_ca=ca.crt",
        )
    )  # fmt: skip
    assert said == (
        f"flower.superlink = 127.0.0.1:{port} does not answer: start it, or leave the key out for "
        "one of the run's own"
    )
    assert nothing_was_started(tmp_path)


def test_a_state_server_that_does_not_answer_is_refused(uncurtail, tmp_path):
    done = uncurtail("run", "tiny.toml", UNCURTAIL_REDIS_URL="redis://127.0.0.1:1/0")
    said = complaint(done)
    assert said.startswith("UNCURTAIL_REDIS_URL does not answer")
    assert said.endswith("start it, or unset the variable")
    assert nothing_was_started(tmp_path)


def test_a_secret_file_that_is_not_there_is_named(uncurtail):
    done = uncurtail("run", "tiny.toml", UNCURTAIL_REDIS_URL_FILE="/nowhere/url")
    assert "UNCURTAIL_REDIS_URL_FILE" in complaint(done)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "tiny.toml", "--bogus"], ["bogus"], ["verify", "a", "b"]]
)
def test_wrong_usage_is_answered_with_the_usage(uncurtail, arguments):
    done = uncurtail(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_exits_1_and_names_what_broke(uncurtail, tmp_path):
    folder = make_run(tmp_path / "runs" / "tiny-20260111-170000", Spec(minutes=60))
    done = uncurtail("verify", str(folder.path))
    assert done.returncode == 0, done.stdout
    lines = folder.events_file.read_text().splitlines(keepends=True)
    released = next(n for n, line in enumerate(lines) if "SiteReleased" in line)
    folder.events_file.write_text("".join(lines[:released] + lines[released + 1 :]))
    done = uncurtail("verify", str(folder.path), "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("length_s", "note"), [(900.0, "Note: a round lasts 3.8 s"), (2400.0, None)]
)
def test_rounds_too_short_for_flower_are_pointed_out(length_s, note):
    from tests.virtual import experiment
    from uncurtail.running import short_rounds

    settings = experiment(clock={"speed": 240.0}, rounds={"length_s": length_s})
    said = short_rounds(settings)
    assert said is None if note is None else said is not None and said.startswith(note)
