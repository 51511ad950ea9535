"""Each check of `verify` is aimed at: one line or byte is changed, and it fails by its name."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runmaker import Spec, make_run
from tests.test_own_run import MUTATIONS as OWN_MUTATIONS
from uncurtail.core.commit import Commit, key
from uncurtail.core.events import CoordinatorStarted, SitePhase, SiteProvisioned, SiteReleased
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.leases import FreeSteps, split
from uncurtail.core.ledger import Ledger
from uncurtail.core.policy import Always, PolicySection
from uncurtail.core.signals import Reading
from uncurtail.instruments import Instruments
from uncurtail.metering import Meter
from uncurtail.runfolder import Journal, RunFolder
from uncurtail.verify import CHECKS, Check, report_lines, to_json, verify
from uncurtail.verify.windows import windows

NAMES = [name for name, _ in CHECKS]
# These runs have no price and no cap: see test_verify_money.py and test_capacity.py.
NOT_HERE: dict[str, bool | None] = {"cost-adds-up": None, "max-sites": None}
NEWEST = 6  # the version of the maker's last commit
T, B = 4, 2  # of the corpus: tokens of a sequence, sequences of a step

Mutation = Callable[[Path], None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended, with one lost update, and a corpus that holds its tokens."""
    root = tmp_path_factory.mktemp("verify")
    spec = Spec(lost=frozenset({(2, "solar")}), tokens_per_step=T * B)
    folder = make_run(root / "demo-1", spec).path
    keys = folder / "private" / "keys"
    keys.mkdir()
    (keys / "solar.1").write_text("secret")
    (keys / "solar.1").chmod(0o600)
    return folder


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


@pytest.fixture(scope="module")
def hashed(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with real tokens behind its hashes."""
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("hashed")
    return give_tokens(Path(shutil.copytree(pristine, root / "demo-1")), root / "data")


def outcome(folder: Path, **options: Any) -> dict[str, bool | None]:
    return {check.name: check.passed for check in verify(RunFolder(folder), **options)}


def failing(folder: Path) -> set[str]:
    return {name for name, passed in outcome(folder).items() if passed is False}


# -- what is right --


def test_a_consistent_run_passes_everything_but_what_is_not_here(run: Path) -> None:
    expected: dict[str, bool | None] = dict.fromkeys(NAMES, True)
    assert outcome(run) == {**expected, "token-hashes": None, **NOT_HERE}
    assert details(run)["token-hashes"].startswith("data.json is missing")


def test_lost_work_is_counted_and_no_error(run: Path) -> None:
    assert "1 lines (43 steps) are lost work" in details(run)["consumed-matches"]


def test_a_run_that_has_not_ended_lists_what_is_up(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo-1", Spec(ended=False, minutes=120)).path
    assert outcome(folder)["provision-release"] is None
    assert "duck.1, solar.1" in details(folder)["provision-release"]
    assert failing(folder) == set()


def test_a_run_that_has_just_begun_passes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo-1", Spec(ended=False, minutes=3)).path
    assert failing(folder) == set()


def test_the_baseline_that_never_waits_is_not_held_to_windows(tmp_path: Path) -> None:
    spec = Spec(policy=Always())
    folder = make_run(tmp_path / "demo-1", spec).path
    assert failing(folder) == set()
    assert outcome(folder)["known-power"] is None


def test_a_commit_whose_coordinator_died_before_it_could_say_so_is_excused(run: Path) -> None:
    events = run / "events.jsonl"
    lines = events.read_text().splitlines()
    index = find(lines, '"RoundCommitted"', -1)
    begun = json.loads(lines[0])
    committed = json.loads(lines[index])
    resumed = {**begun, "t": committed["t"], "wall_s": committed["wall_s"], "epoch": 2}
    resumed |= {"version": committed["version"], "tokens": committed["tokens"]}
    lines[index] = json.dumps(resumed)
    events.write_text("\n".join(lines) + "\n")
    assert failing(run) == set()
    assert f"versions [{NEWEST}] were durable" in details(run)["events-readable"]


def test_deleted_older_objects_are_counted(run: Path) -> None:
    (run / commit_of(run, 3).model).unlink()
    assert outcome(run)["objects"] is True
    assert "1 older ones are deleted" in details(run)["objects"]


def test_objects_kept_elsewhere_are_not_judged(run: Path) -> None:
    edit_json("resolved.json", lambda body: body.update(store={"url": "s3://models"}))(run)
    shutil.rmtree(run / "objects")
    assert outcome(run)["objects"] is None
    assert "s3://models" in details(run)["objects"]


def test_the_same_folder_gives_the_same_checks(run: Path, tmp_path: Path) -> None:
    again = make_run(tmp_path / "again" / run.name, Spec(lost=frozenset({(2, "solar")}))).path
    twice = [verify(RunFolder(again)), verify(RunFolder(again))]
    assert twice[0] == twice[1]
    assert verify(RunFolder(run)) == verify(RunFolder(run))


@pytest.mark.parametrize("columns", [7, 12])
def test_power_of_before_microgrids_or_prices_passes_as_it_is(run: Path, columns: int) -> None:
    power = run / "series" / "power.csv"
    lines = [",".join(line.split(",")[:columns]) for line in power.read_text().splitlines()]
    power.write_text("\n".join(lines) + "\n")
    assert failing(run) == set()


# -- mutations --


def lines_of(name: str, change: Callable[[list[str]], None]) -> Mutation:
    """Change a text file as a list of lines."""

    def mutate(run: Path) -> None:
        lines = (run / name).read_text().splitlines()
        change(lines)
        (run / name).write_text("\n".join(lines) + "\n")

    return mutate


def find(lines: list[str], needle: str, nth: int = 0) -> int:
    return [i for i, line in enumerate(lines) if needle in line][nth]


def drop(name: str, needle: str, nth: int = 0) -> Mutation:
    return lines_of(name, lambda lines: lines.__delitem__(find(lines, needle, nth)))


def double(name: str, needle: str, nth: int = 0) -> Mutation:
    def change(lines: list[str]) -> None:
        index = find(lines, needle, nth)
        lines.insert(index, lines[index])

    return lines_of(name, change)


def alter(name: str, needle: str, old: str, new: str, nth: int = 0) -> Mutation:
    def change(lines: list[str]) -> None:
        index = find(lines, needle, nth)
        assert old in lines[index], lines[index]
        lines[index] = lines[index].replace(old, new, 1)

    return lines_of(name, change)


def edit_json(name: str, change: Callable[[Any], None]) -> Mutation:
    def mutate(run: Path) -> None:
        body = json.loads((run / name).read_text())
        change(body)
        (run / name).write_text(json.dumps(body))

    return mutate


def forge(version: int, change: Callable[[dict[str, Any]], None]) -> Mutation:
    """Change a commit and mend every hash that would give it away."""

    def mutate(run: Path) -> None:
        old = (run / key(version)).read_bytes()
        body = json.loads(old)
        change(body)
        replace_commit(run, version, body)

    return mutate


def replace_commit(run: Path, version: int, body: dict[str, Any]) -> None:
    old = (run / key(version)).read_bytes()
    new = Commit.decode(json.dumps(body).encode()).encode()
    (run / key(version)).write_bytes(new)
    before, after = (hashlib.sha256(data).hexdigest() for data in (old, new))
    events = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(events.replace(before, after))
    if (run / key(version + 1)).exists():
        child = json.loads((run / key(version + 1)).read_text())
        replace_commit(run, version + 1, {**child, "parent_sha256": after})


def cut_last_byte(name: str) -> Mutation:
    def mutate(run: Path) -> None:
        (run / name).write_bytes((run / name).read_bytes()[:-1])

    return mutate


def write(name: Callable[[Path], str], text: str) -> Mutation:
    def mutate(run: Path) -> None:
        (run / name(run)).write_text(text)

    return mutate


def rename_newest(run: Path) -> None:
    (run / key(NEWEST)).rename(run / key(NEWEST + 1))


def flip_byte(name: Callable[[Path], str]) -> Mutation:
    def mutate(run: Path) -> None:
        path = run / name(run)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return mutate


def commit_of(run: Path, version: int) -> Commit:
    return Commit.decode((run / key(version)).read_bytes())


def newest_model(run: Path) -> str:
    return commit_of(run, NEWEST).model


def newest_outer(run: Path) -> str:
    return commit_of(run, NEWEST).outer or ""


def swap(name: str, needle: str, other: str) -> Mutation:
    def change(lines: list[str]) -> None:
        i, j = find(lines, needle), find(lines, other)
        lines[i], lines[j] = lines[j], lines[i]

    return lines_of(name, change)


def shift(body: dict[str, Any], steps: int) -> None:
    """Let a commit's first update count other steps, as many."""
    interval = body["updates"][0]["intervals"][0]
    interval[1] += steps
    interval[2] += steps


def silence(lines: list[str], site: str, hour: str) -> None:
    """Drop an hour of a site's readings."""
    lines[:] = [line for line in lines if not (f",{site}," in line and f"T{hour}" in line)]


def again(start: str, end: str) -> str:
    """The first coordinator, once more, after the end."""
    first, last = json.loads(start), json.loads(end)
    return json.dumps(first | {name: last[name] for name in ("t", "wall_s", "version", "tokens")})


def copy(old: Path, new: Path) -> None:
    new.write_bytes(old.read_bytes())


def tally(site: str, phase: str, **factors: float) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        for name, factor in factors.items():
            body["ledger"][site][phase][name] *= factor

    return change


EVENTS, POWER, READINGS = "events.jsonl", "series/power.csv", "series/readings.csv"
STEPS, DUCK = "series/steps.csv", "sites/duck/consumed.jsonl"

# Everything that needs every commit, every event, or every reading to be readable.
COMMITS = {"commit-chain", "objects", "steps-once", "consumed-matches", "energy-adds-up"}
COMMITS |= {"emissions-add-up", "events-readable"}
LOG = {"provision-release", "energy-adds-up", "events-readable"}
SIGNAL = {"emissions-add-up", "only-in-windows", "known-power"}

# (the check aimed at, what is done, how, the other checks that fail as well)
MUTATIONS: list[tuple[str, str, Mutation, set[str]]] = [
    ("commit-chain", "drop-one", lambda run: (run / key(3)).unlink(),
     {"steps-once", "events-readable"}),
    ("commit-chain", "drop-all", lambda run: shutil.rmtree(run / "commits"), COMMITS),
    ("commit-chain", "double", lambda run: copy(run / key(NEWEST), run / key(NEWEST + 1)),
     {"steps-once", "consumed-matches"}),
    ("commit-chain", "rename", rename_newest, set()),
    ("commit-chain", "one-byte", alter(key(2), '"wall_s"', "1790000026.8", "1790000026.7"),
     {"events-readable"}),
    ("commit-chain", "not-json", cut_last_byte(key(2)), COMMITS),
    ("commit-chain", "another-type", edit_json(key(2), lambda body: body.update(tokens="7")),
     COMMITS),
    ("commit-chain", "tokens", forge(2, lambda body: body.update(tokens=7)),
     {"events-readable"}),
    ("commit-chain", "epoch-falls", forge(1, lambda body: body.update(epoch=2)), set()),
    ("commit-chain", "another-run", forge(1, lambda body: body.update(run="demo-2")), set()),
    ("commit-chain", "round-again", forge(2, lambda body: body.update(round=1)),
     {"consumed-matches", "events-readable"}),
    ("objects", "drop-newest", lambda run: (run / newest_model(run)).unlink(), set()),
    ("objects", "drop-newest-outer", lambda run: (run / newest_outer(run)).unlink(), set()),
    ("objects", "alter-newest", flip_byte(newest_model), set()),
    ("objects", "alter-an-older", flip_byte(lambda run: commit_of(run, 2).model), set()),
    ("objects", "empty", write(newest_model, ""), set()),
    ("objects", "no-hash", forge(NEWEST, lambda body: body.update(model=key(0))), set()),
    ("steps-once", "twice", forge(3, lambda body: shift(body, -1)), {"consumed-matches"}),
    ("steps-once", "lost", forge(NEWEST, lambda body: body["free"].update(intervals=[])), set()),
    ("steps-once", "lost-meanwhile", forge(2, lambda body: body["free"].update(intervals=[])),
     set()),
    ("steps-once", "free-twice",
     forge(NEWEST, lambda body: body["free"]["intervals"].append([1, 70, 71])), set()),
    ("steps-once", "lost-epoch", forge(NEWEST, lambda body: body["free"].update(next_epoch=3)),
     set()),
    ("steps-once", "unopened", forge(NEWEST, lambda body: body["free"].update(next_epoch=1)),
     set()),
    ("steps-once", "beyond-the-epoch",
     forge(NEWEST, lambda body: body["free"].update(intervals=[[1, 63, 121]])), set()),
    ("steps-once", "another-size",
     forge(2, lambda body: body["free"].update(steps_per_epoch=121)), set()),
    ("steps-once", "more-than-leased",
     forge(NEWEST, lambda body: body["updates"][0].update(steps=39)),
     {"consumed-matches", "events-readable"}),
    ("consumed-matches", "drop", drop(DUCK, '"round": 4'), set()),
    ("consumed-matches", "double", double(DUCK, '"round": 4'), set()),
    ("consumed-matches", "alter-steps", alter(DUCK, "[0, 45, 67]", "67", "66"), set()),
    ("consumed-matches", "alter-hash", alter(DUCK, '"round": 4', '_sha256": "', '_sha256": "f'),
     set()),
    ("consumed-matches", "alter-session", alter(DUCK, '"round": 4', "n\": 2", "n\": 1"), set()),
    ("consumed-matches", "torn", cut_last_byte(DUCK), set()),
    ("consumed-matches", "garbled", alter(DUCK, '"round": 4', "{", ""), set()),
    ("consumed-matches", "no-file", lambda run: (run / DUCK).unlink(), set()),
    ("consumed-matches", "another-site",
     forge(3, lambda body: body["updates"][0].update(site="coal")), {"events-readable"}),
    ("provision-release", "drop-provision", drop(EVENTS, '"SiteProvisioned"', 1),
     {"events-readable"}),
    ("provision-release", "drop-release", drop(EVENTS, '"SiteReleased"', -1), set()),
    ("provision-release", "double-release", double(EVENTS, '"SiteReleased"', -1), set()),
    ("provision-release", "double-provision", double(EVENTS, '"SiteProvisioned"'),
     {"events-readable"}),
    ("provision-release", "session-falls",
     alter(EVENTS, '"SiteProvisioned", "site": "windy"', "n\": 1", "n\": 3"), set()),
    ("provision-release", "another-session",
     alter(EVENTS, '"SiteReleased", "site": "windy"', "n\": 1", "n\": 2"), set()),
    ("provision-release", "phase-of-nobody",
     alter(EVENTS, '"phase": "idle"', "n\": 1", "n\": 9"), set()),
    ("energy-adds-up", "drop-phase", drop(EVENTS, '"phase": "draining"', -1), set()),
    ("energy-adds-up", "alter-phase", alter(EVENTS, '"phase": "draining"', "draining", "training"),
     set()),
    ("energy-adds-up", "alter-time",
     alter(EVENTS, '"phase": "idle"', "08:40:00.000", "08:40:00.010"), {"events-readable"}),
    ("energy-adds-up", "alter-event-watts", alter(EVENTS, '"phase": "idle"', "468.0", "469.0"),
     set()),
    ("energy-adds-up", "drop-row", drop(POWER, "duck,training", 3), {"emissions-add-up"}),
    ("energy-adds-up", "drop-last-row", drop(POWER, "solar,released", -1), set()),
    ("energy-adds-up", "drop-first-row", drop(POWER, "solar,released"), set()),
    ("energy-adds-up", "double-row", double(POWER, "duck,training", 3), {"emissions-add-up"}),
    ("energy-adds-up", "alter-feed-watts",
     alter(POWER, "duck,training", "2024,2024", "2024,2034"), {"emissions-add-up"}),
    ("energy-adds-up", "alter-told-watts",
     alter(POWER, "duck,training", "2024,2024", "2034,2024"), set()),
    ("energy-adds-up", "alter-row-phase", alter(POWER, "duck,draining", "draining", "training"),
     {"only-in-windows"}),
    ("energy-adds-up", "unknown-phase", alter(POWER, "duck,draining", "draining", "resting"),
     set()),
    ("energy-adds-up", "not-a-number", alter(POWER, "duck,draining", ",2024,2024", ",nan,nan"),
     {"emissions-add-up"}),
    ("energy-adds-up", "a-ghost", alter(POWER, "duck,idle", "duck", "dusk"), {"emissions-add-up"}),
    ("energy-adds-up", "a-shift", alter(POWER, "duck,idle", "10:14:00.000", "10:14:00.010"), set()),
    ("energy-adds-up", "ledger", forge(NEWEST, tally("duck", "training", energy_j=1 + 2e-6)),
     set()),
    ("energy-adds-up", "ledger-moved",
     forge(NEWEST, lambda body: body["ledger"]["duck"].pop("draining")), {"emissions-add-up"}),
    ("energy-adds-up", "config", edit_json("resolved.json", lambda body: body["sites"]["duck"]
     .update(train_power_w=2025.0)), set()),
    ("energy-adds-up", "no-series", lambda run: (run / POWER).unlink(),
     {"emissions-add-up", "cost-adds-up", "only-in-windows", "known-power"}),
    ("emissions-add-up", "ledger", forge(NEWEST, tally("duck", "training", emissions_g=1.001)),
     set()),
    ("emissions-add-up", "clean", forge(NEWEST, tally("duck", "training", clean_j=0.99)), set()),
    ("emissions-add-up", "unpriced", forge(NEWEST, tally("windy", "draining", unpriced_j=0.5)),
     set()),
    ("emissions-add-up", "alter-reading",
     alter(READINGS, "09:35:00.000+00:00,duck", "53.3", "53.4"), set()),
    ("emissions-add-up", "drop-reading", drop(READINGS, "09:35:00.000+00:00,duck"), set()),
    ("emissions-add-up", "alter-row-intensity",
     alter(POWER, "2024,53.3", "2024,53.3", "2024,53.4", 0), set()),
    ("emissions-add-up", "forget-row-intensity", alter(POWER, "2024,53.3", "2024,53.3", "2024,"),
     set()),
    ("emissions-add-up", "threshold", edit_json("resolved.json", lambda body: body["policy"]
     .update(enter_below_g_per_kwh=90.0)), set()),
    ("only-in-windows", "alter-reading",
     alter(READINGS, "09:00:00.000+00:00,solar", ",0", ",500"), {"emissions-add-up"}),
    ("only-in-windows", "hysteresis",
     alter(READINGS, "11:50:00.000+00:00,duck", "76.7", "120.1"), {"emissions-add-up"}),
    ("only-in-windows", "double-reading", double(READINGS, "09:00:00.000+00:00,solar"),
     SIGNAL - {"only-in-windows"}),
    ("only-in-windows", "swap-readings",
     swap(READINGS, "09:00:00.000+00:00,solar", "09:05:00.000+00:00,solar"),
     SIGNAL - {"only-in-windows"}),
    ("only-in-windows", "alter-step", alter(STEPS, "08:41:00.000", "08:41", "08:21"), set()),
    ("only-in-windows", "late-step", alter(STEPS, "10:09:00.000+00:00,1790000025.800,solar",
     "10:09", "10:12"), set()),
    ("only-in-windows", "step-of-a-ghost", alter(STEPS, ",windy,", "windy", "coal"), set()),
    ("only-in-windows", "band", edit_json("resolved.json", lambda body: body["policy"]
     .update(leave_above_g_per_kwh=100.0)), set()),
    ("only-in-windows", "no-steps", lambda run: (run / STEPS).unlink(), set()),
    ("only-in-windows", "header", alter(STEPS, "t,wall_s", "t,", "T,"), set()),
    ("known-power", "forget-reading",
     alter(READINGS, "09:35:00.000+00:00,duck", "53.3", ""),
     {"emissions-add-up", "only-in-windows"}),
    ("known-power", "implausible",
     alter(READINGS, "09:35:00.000+00:00,duck", "53.3", "5300"),
     {"emissions-add-up", "only-in-windows"}),
    ("known-power", "not-a-number", alter(READINGS, "09:35:00.000+00:00,duck", "53.3", "nan"),
     {"emissions-add-up", "only-in-windows"}),
    ("known-power", "stale", edit_json("resolved.json", lambda body: body["policy"]
     .update(stale_after_s=299.0)), {"only-in-windows"}),
    ("known-power", "silence", lines_of(READINGS, lambda lines: silence(lines, "duck", "11:")),
     {"emissions-add-up", "only-in-windows"}),
    ("known-power", "no-readings", lambda run: (run / READINGS).unlink(), SIGNAL),
    ("events-readable", "drop-start", drop(EVENTS, "CoordinatorStarted"), set()),
    ("events-readable", "double-start", double(EVENTS, "CoordinatorStarted"), set()),
    ("events-readable", "drop-newest-commit", lambda run: (run / key(NEWEST)).unlink(), set()),
    ("events-readable", "drop-a-window", drop(EVENTS, "WindowOpened"), set()),
    ("events-readable", "drop-a-commit", drop(EVENTS, "RoundCommitted", 2), set()),
    ("events-readable", "drop-last-commit", drop(EVENTS, "RoundCommitted", -1), set()),
    ("events-readable", "double-a-commit", double(EVENTS, "RoundCommitted", -1), set()),
    ("events-readable", "alter-a-commit",
     alter(EVENTS, '"version": 3', '"version": 3, "tokens": ', '"version": 3, "tokens": 9'), set()),
    ("events-readable", "alter-hash", alter(EVENTS, '"version": 3', '"sha256": "', '"sha256": "0'),
     set()),
    ("events-readable", "drop-an-update", drop(EVENTS, "UpdateAccepted", -1), set()),
    ("events-readable", "alter-an-update", alter(EVENTS, "UpdateAccepted", "s\": 45", "s\": 46"),
     set()),
    ("events-readable", "time-falls", alter(EVENTS, "WindowClosed", "10:10:00", "09:29:00"), set()),
    ("events-readable", "wall-time-falls", alter(EVENTS, "WindowClosed", "1790000026.0",
     "1790000017.0"), set()),
    ("events-readable", "ends-elsewhere", alter(EVENTS, "RunEnded", "version\": 6", "version\": 5"),
     set()),
    ("events-readable", "goes-on", double(EVENTS, "RunEnded"), set()),
    ("events-readable", "epoch-again",
     lines_of(EVENTS, lambda lines: lines.append(again(lines[0], lines[-1]))), set()),
    ("events-readable", "not-an-event", alter(EVENTS, "WindowOpened", "Opened", "Ajar"), LOG),
    ("events-readable", "another-field", alter(EVENTS, "WindowOpened", '"site"', '"sight"'), LOG),
    ("events-readable", "not-a-time", alter(EVENTS, "WindowOpened", "+00:00", ""), LOG),
    ("events-readable", "another-type",
     alter(EVENTS, "RoundCommitted", "round\": 1", "round\": null"), set()),
    ("events-readable", "empty", write(lambda _: EVENTS, ""), LOG),
    ("events-readable", "no-file", lambda run: (run / EVENTS).unlink(), LOG),
    ("nothing-public", "open-folder", lambda run: (run / "private").chmod(0o750), set()),
    ("nothing-public", "open-key",
     lambda run: (run / "private" / "keys" / "solar.1").chmod(0o640), set()),
    ("nothing-public", "key-for-all",
     lambda run: (run / "private" / "keys" / "solar.1").chmod(0o604), set()),
]  # fmt: skip

# Aimed at alone, below: it needs a corpus.
TOKEN_MUTATIONS: list[tuple[str, Mutation, set[str]]] = [
    ("alter-token", lambda run: flip_byte(lambda _: "../data/train.bin")(run), set()),
    ("another-prefix", forge(3, lambda body: shift(body, -1)), {"steps-once", "consumed-matches"}),
    ("another-hash", forge(3, lambda body: body["updates"][0].update(token_sha256="0" * 64)),
     {"consumed-matches"}),
    ("another-order", edit_json("resolved.json", lambda body: body["train"]
     .update(batch_sequences=1)), set()),
    ("beyond-the-corpus", forge(NEWEST, lambda body: shift(body, 50)),
     {"steps-once", "consumed-matches"}),
    ("garbled", write(lambda _: "data.json", "{"), set()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("aimed", "mutate", "others"),
    [pytest.param(aimed, *rest, id=f"{aimed}/{what}") for aimed, what, *rest in MUTATIONS],
)
def test_a_broken_run_fails_by_name(
    run: Path, aimed: str, mutate: Mutation, others: set[str]
) -> None:
    assert outcome(run, tolerance_s=0.0)[aimed] is True
    mutate(run)
    checks = verify(RunFolder(run), tolerance_s=0.0)
    assert {c.name for c in checks if c.passed is False} == {aimed, *others}, "\n".join(
        report_lines(checks)
    )


@pytest.mark.parametrize(
    ("mutate", "others"), [pytest.param(*rest, id=what) for what, *rest in TOKEN_MUTATIONS]
)
def test_other_tokens_than_were_trained_fail_by_name(
    hashed: Path, tmp_path: Path, mutate: Mutation, others: set[str]
) -> None:
    run = copy_with_data(hashed, tmp_path)
    mutate(run)
    assert failing(run) == {"token-hashes", *others}, "\n".join(
        report_lines(verify(RunFolder(run)))
    )


def test_every_check_is_aimed_at_more_than_once() -> None:
    aimed = [name for name, *_ in MUTATIONS] + ["token-hashes"] * len(TOKEN_MUTATIONS)
    aimed += [str(row.values[1]) for row in OWN_MUTATIONS]
    assert {name for name in NAMES if aimed.count(name) > 1} == set(NAMES) - set(NOT_HERE)


# -- tokens --


def give_tokens(run: Path, data: Path) -> Path:
    """Put a corpus behind the run's hashes, as if its sites had read it."""
    from uncurtail.lm.data import Corpus
    from uncurtail.lm.manifest import Manifest, Shard

    data.mkdir()
    steps = commit_of(run, NEWEST).free.steps_per_epoch
    shards = []
    for name, count in (("train.bin", steps * B * T + 1), ("val.bin", 20)):
        content = np.arange(count, dtype="<u2").tobytes()
        (data / name).write_bytes(content)
        shards.append(Shard(name, count, len(content), hashlib.sha256(content).hexdigest()))
    (data / "tokenizer.json").write_text("{}")
    manifest = Manifest(
        inputs_sha256="",
        tokenizer_sha256="",
        vocab_size=2**16,
        token_bytes=2,
        seed=0,
        split="none",
        train=(shards[0],),
        val=shards[1],
        train_bytes=1,
        val_bytes=1,
    )
    manifest.save(data)
    point_at(run, data, manifest.sha256)
    shape = {"model": {"sequence_length": T}, "train": {"batch_sequences": B}}
    edit_json("resolved.json", lambda body: body.update(shape))(run)
    corpus = Corpus.open(data)
    for version in range(1, NEWEST + 1):
        body = json.loads((run / key(version)).read_text())
        for update in body["updates"]:
            hasher = hashlib.sha256()
            for epoch, start, stop in split(update["intervals"], update["steps"])[0]:
                for step in range(start, stop):
                    corpus.hash_step(hasher, epoch, step, T, B)
            told, update["token_sha256"] = update["token_sha256"], hasher.hexdigest()
            record = run / "sites" / update["site"] / "consumed.jsonl"
            record.write_text(record.read_text().replace(told, hasher.hexdigest()))
        replace_commit(run, version, body)
    return run


def point_at(run: Path, data: Path, sha256: str) -> None:
    (run / "data.json").write_text(json.dumps({"folder": str(data), "manifest_sha256": sha256}))


def copy_with_data(hashed: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(hashed, tmp_path / hashed.name))
    data = Path(shutil.copytree(hashed.parent / "data", tmp_path / "data"))
    edit_json("data.json", lambda body: body.update(folder=str(data)))(run)
    return run


def test_tokens_are_hashed_again_where_the_corpus_is(hashed: Path) -> None:
    assert outcome(hashed) == {**dict.fromkeys(NAMES, True), **NOT_HERE}
    assert details(hashed)["token-hashes"].startswith("the tokens of 7 updates are those of")


def test_tokens_that_are_not_hashed_again_say_why(hashed: Path, tmp_path: Path) -> None:
    assert outcome(hashed, recompute_tokens=False)["token-hashes"] is None
    run = copy_with_data(hashed, tmp_path)
    edit_json("data.json", lambda body: body.update(manifest_sha256="0" * 64))(run)
    assert "other data than the run read" in details(run)["token-hashes"]
    (tmp_path / "data" / "val.bin").unlink()
    assert "prepare" in details(run)["token-hashes"]
    shutil.rmtree(tmp_path / "data")
    assert "holds no data" in details(run)["token-hashes"]
    assert outcome(run)["token-hashes"] is None


# -- every line, every file --


@pytest.mark.parametrize("times", [0, 2], ids=["dropped", "doubled"])
@pytest.mark.parametrize("name", [EVENTS, POWER, DUCK])
def test_no_line_can_be_dropped_or_doubled_unseen(run: Path, name: str, times: int) -> None:
    """But what an unfinished run could have, too: its end, and what no commit saw."""
    lines = (run / name).read_text().splitlines(keepends=True)
    unseen = []
    stride = 5 if name == POWER else 1  # many rows, all alike
    for index, line in list(enumerate(lines))[::stride]:
        (run / name).write_text("".join([*lines[:index], *[line] * times, *lines[index + 1 :]]))
        if not failing(run):
            unseen.append(line)
    allowed = {"RunEnded", "Evaluated", "SitePhase"} if times else {"RunEnded", "Evaluated"}
    assert name == EVENTS or not unseen
    assert {json.loads(line)["event"] for line in unseen} <= allowed


def test_no_reading_that_changed_can_be_dropped_unseen(run: Path) -> None:
    lines = (run / READINGS).read_text().splitlines(keepends=True)
    for index in range(1, len(lines) - 3, 7):  # the last minute's were never acted on
        (run / READINGS).write_text("".join([*lines[:index], *lines[index + 1 :]]))
        known = lines[index].rsplit(",", 1)[1] != lines[index - 3].rsplit(",", 1)[1]
        assert failing(run) or not known, lines[index]


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage", "json", "folder"])
def test_a_damaged_file_never_raises_and_is_named(run: Path, damage: str) -> None:
    needed = ["resolved.json", EVENTS, POWER, READINGS, STEPS, DUCK, key(0), key(3), key(NEWEST)]
    if damage == "half":
        needed.remove(STEPS)  # a site's report of a step may be lost on the way
    for name in needed:
        path, content = run / name, (run / name).read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes(damaged(content, damage))
        checks = verify(RunFolder(run))
        assert [check.name for check in checks] == NAMES
        failed = [check for check in checks if check.passed is False]
        assert failed, name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert failing(run) == set()


def damaged(content: bytes, damage: str) -> bytes:
    other = {"empty": b"", "garbage": b"\xff\x00\n" * 9, "json": b'[{"a": NaN}]\n'}
    return other.get(damage, content[: len(content) // 2])


def test_an_empty_folder_fails_by_name_and_does_not_raise(tmp_path: Path) -> None:
    checks = verify(RunFolder(tmp_path / "nothing"))
    assert not to_json(checks)["passed"]
    told = {check.name: check.detail for check in checks}
    assert told["commit-chain"] == "commits/ holds no commit: copy the run folder anew, whole"
    assert told["only-in-windows"].startswith("resolved.json is missing")
    assert (tmp_path / "nothing").exists() is False


# -- energy in odd fractions of a second --


@dataclass
class _Feed:
    """Readings as given; draws what is asked for."""

    rows: list[Reading]
    trouble: str | None = None

    def readings(self, after: float, until: float) -> list[Reading]:
        return [row for row in self.rows if after < row.t <= until]

    def next_change(self, now: float) -> float:
        return min((row.t for row in self.rows if row.t > now), default=math.inf)

    def draw(self, start: float, end: float, power_w: Mapping[str, float]) -> dict[str, float]:
        return dict(power_w)


def odd_run(path: Path, draining_w: float) -> Path:
    """A site that changes its phase every few seconds, at times no file holds exactly."""
    folder = RunFolder(path)
    site = SiteSection(preset="solar", train_power_w=draining_w, provision_power_w=977.3)
    journal = Journal(folder)
    generator = np.random.default_rng(7)
    start = 1_790_000_000.123456
    rows = [Reading("oslo", start + 300.0777 * i, 90.0 - i % 7) for i in range(40)]
    ledger = Ledger(100.0)
    instruments = Instruments(_Feed(rows), journal)
    meter = Meter({"oslo": site}, {"oslo": Phase.RELEASED}, instruments, ledger, start)
    now = {"t": start, "wall_s": start}
    journal.event(CoordinatorStarted(**now, epoch=1, run="odd", version=0, tokens=0))
    meter.begin()
    t = start
    for phase in [*list(Phase)[1:], Phase.RELEASED] * 60:
        t += float(generator.uniform(5.0, 45.0))
        now = {"t": t, "wall_s": t}
        meter.advance(t)
        power_w = site.power_w(phase)
        if phase is Phase.PROVISIONING:
            session = int(t)
            journal.event(SiteProvisioned(**now, site="oslo", session=session))
        event = SitePhase(**now, site="oslo", session=session, phase=phase, power_w=power_w)
        journal.event(event)
        if phase is Phase.RELEASED:
            journal.event(SiteReleased(**now, site="oslo", session=session, cause="drained"))
        meter.change({"oslo": phase}, t)
    meter.cut(t + 1.0)
    commit = Commit(
        run="odd", version=0, epoch=1, round=0, parent_sha256=None, t=t + 1.0, wall_s=t + 1.0,
        model="objects/" + hashlib.sha256(b"").hexdigest(), outer=None, tokens=0,
        free=FreeSteps(10), ledger=meter.ledger.to_json(), event_offset=journal.offset(),
    )  # fmt: skip
    journal.close()
    (path / key(0)).write_bytes(commit.encode())
    (path / "objects").mkdir()
    (path / commit.model).write_bytes(b"")
    body = {
        "clock": {"speed": 1.0},
        "policy": PolicySection().model_dump(mode="json"),
        "sites": {"oslo": site.model_dump(mode="json")},
    }
    folder.resolved.write_text(json.dumps(body))
    return path


def test_energy_of_odd_times_and_watts_adds_up(tmp_path: Path) -> None:
    """What rounding to milliseconds costs a site of 30 kW is allowed for, and no more."""
    run = odd_run(tmp_path / "odd", 30_123.4)
    assert failing(run) == set()
    body = json.loads((run / key(0)).read_text())
    body["ledger"]["oslo"]["training"]["energy_j"] *= 1.0002
    (run / key(0)).write_text(json.dumps(body))
    assert failing(run) == {"energy-adds-up"}


# -- windows --


def reading(minute: float, value: float | None) -> Reading:
    return Reading("oslo", minute * 60.0, value)


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        pytest.param([], [], id="nothing-known"),
        pytest.param([(0, 99.0), (5, 120.0), (10, 120.1)], [(0, 10)], id="hysteresis"),
        pytest.param([(0, 110.0), (5, 90.0), (10, 500.0)], [(5, 10)], id="in-the-band-is-not-in"),
        pytest.param([(0, 50.0), (30, 50.0)], [(0, 15), (30, 45)], id="stale-then-again"),
        pytest.param([(0, 50.0), (30, 110.0)], [(0, 15)], id="stale-is-closed"),
        pytest.param([(0, 50.0), (15, 110.0)], [(0, 30)], id="just-in-time"),
        pytest.param([(0, 50.0), (5, None), (10, 110.0)], [(0, 5)], id="unknown-closes"),
    ],
)
def test_windows_are_judged_again_from_readings(
    readings: list[tuple[float, float | None]], expected: list[tuple[float, float]]
) -> None:
    found = windows(PolicySection(), [reading(*item) for item in readings])
    assert found == [(start * 60.0, end * 60.0) for start, end in expected]


def test_a_tick_may_notice_late_but_not_later(run: Path) -> None:
    """Two wall seconds at speed 300: a reading may be 600 s old before it is acted on."""
    lines_of(READINGS, lambda lines: darken(lines, "duck", ("11:50", "11:55")))(run)
    late = {"emissions-add-up"}
    assert failing(run) == late
    assert failing_with(run, 599.0) == late | {"only-in-windows"}


def darken(lines: list[str], site: str, minutes: tuple[str, ...]) -> None:
    for minute in minutes:
        index = find(lines, f"T{minute}:00.000+00:00,{site}")
        lines[index] = f"2026-06-01T{minute}:00.000+00:00,{site},400"


def failing_with(run: Path, tolerance_s: float) -> set[str]:
    return {
        name
        for name, passed in outcome(run, tolerance_s=tolerance_s).items()
        if not passed and passed is not None
    }


# -- what people and scripts see --


def test_lines_and_json_say_what_passed_failed_and_could_not_be_checked() -> None:
    checks = [Check("a", True, "fine"), Check("bcd", None, "not here"), Check("e", False, "broken")]
    assert report_lines(checks) == ["✓ a    fine", "- bcd  not here", "✗ e    broken"]
    assert to_json(checks)["passed"] is False
    assert to_json(checks[:2]) == {
        "passed": True,
        "checks": [
            {"name": "a", "passed": True, "detail": "fine"},
            {"name": "bcd", "passed": None, "detail": "not here"},
        ],
    }
    assert report_lines([]) == []


def details(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(RunFolder(folder))}
