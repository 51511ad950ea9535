"""Every experiment that we ship loads, and its power is known from its first second."""

import json
from pathlib import Path

import pytest

from tests.papertrace import paper_trace
from uncurtail import wiring
from uncurtail.config import dump, load, parse

HERE = Path(__file__).parent.parent
EXPERIMENTS = sorted((HERE / "experiments").rglob("*.toml"))


def test_there_is_a_demo():
    assert HERE / "experiments" / "demo.toml" in EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_loads_and_is_named_as_its_file(path):
    config = load(path)
    assert config.name == path.stem
    assert parse(json.loads(dump(config)), "dumped") == config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_site_has_a_signal_at_the_start(path, monkeypatch):
    monkeypatch.chdir(HERE)
    config = load(path)
    if config.energy.live:
        pytest.skip(f"{config.energy.source} says it as the run goes on")
    if path.stem == "paper":
        config = load(path, [f"energy.path={paper_trace()}"])
    start = wiring.start_time(config, 1_790_000_000.0)
    known = {site: trace.at(start) for site, trace in wiring.traces(config, start).items()}
    assert known.keys() == config.sites.keys()
    assert None not in known.values()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_its_first_line_says_what_it_is(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
