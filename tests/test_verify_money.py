"""Cost adds up, or `verify` says where it does not: one line altered, one complaint."""

import json
import shutil

import pytest

from tests.test_pricing import by_hour, played, settings, write
from uncurtail.runfolder import RunFolder
from uncurtail.verify import verify

POWER, PRICES = "series/power.csv", "series/prices.csv"


@pytest.fixture(scope="module")
def paid_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("paid")
    columns = {"duck": by_hour, "windy": lambda _t: 0.3}
    return played(path, settings(write(path / "p.csv", columns, hours=20))).folder.path


@pytest.fixture
def run(paid_run, tmp_path):
    copied = tmp_path / paid_run.name
    shutil.copytree(paid_run, copied)
    return copied


def failing(path):
    checks = verify(RunFolder(path), recompute_tokens=False)
    return {check.name for check in checks if check.passed is False}


def edit(path, name, change):
    lines = (path / name).read_text().splitlines()
    change(lines)
    (path / name).write_text("\n".join(lines) + "\n")


def row(lines, *needles):
    return next(i for i, line in enumerate(lines) if all(needle in line for needle in needles))


def test_an_honest_run_passes(run):
    assert failing(run) == set()


def test_a_run_without_any_price_has_nothing_to_check(run):
    (run / PRICES).unlink()
    lines = (run / POWER).read_text().splitlines()
    (run / POWER).write_text("\n".join(line.rsplit(",", 2)[0] for line in lines) + "\n")
    checks = {c.name: c for c in verify(RunFolder(run), recompute_tokens=False)}
    assert checks["cost-adds-up"].passed is None
    assert checks["energy-adds-up"].passed is True, "an older folder is read as it is"


def alter_price(lines):
    at = row(lines, "duck", "0.14")
    lines[at] = lines[at].replace("0.14", "0.15")


def drop_price(lines):
    del lines[row(lines, "duck", "0.2,")]


def double_price(lines):
    lines.insert(row(lines, "duck", "0.2,"), lines[row(lines, "duck", "0.2,")])


def alter_row(lines):
    at = row(lines, "duck,training", ",0.2,model")
    lines[at] = lines[at].replace(",0.2,model", ",0.21,model")


def forget_row(lines):
    at = row(lines, "duck,training", ",0.2,model")
    lines[at] = lines[at].replace(",0.2,model", ",,model")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (PRICES, alter_price),
        (PRICES, drop_price),
        (PRICES, double_price),
        (POWER, alter_row),
        (POWER, forget_row),
    ],
)
def test_one_altered_line_fails_by_name(run, name, change):
    edit(run, name, change)
    assert failing(run) == {"cost-adds-up"}


def test_another_declared_price_fails_by_name(run):
    body = json.loads((run / "resolved.json").read_text())
    body["sites"]["duck"]["price_eur_per_kwh"] = 0.51
    (run / "resolved.json").write_text(json.dumps(body))
    assert failing(run) == {"cost-adds-up"}, "the file ended after 20 hours"
