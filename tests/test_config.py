"""Configuration: what a user gets wrong is one line that names the place and the remedy."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.config import Config, ConfigError, apply_override, dump, load, parse
from uncurtail.core.events import unix
from uncurtail.core.grids import PRESETS

BODY = {
    "name": "demo",
    "clock": {"start": "2026-07-24T06:00:00+00:00", "speed": 60.0},
    "sites": {"duck": {"preset": "duck"}, "solar": {"preset": "solar"}},
    "train": {"budget_tokens": 1000},
}
TOML = """
name = "demo"
[clock]
start = "2026-07-24T06:00:00+00:00"
speed = 60.0
[sites.duck]
preset = "duck"
[sites.solar]
preset = "solar"
[train]
budget_tokens = 1000
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "demo.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def refusal(path, *overrides) -> str:
    with pytest.raises(ConfigError) as refused:
        load(path, overrides)
    return str(refused.value)


def test_a_small_experiment_is_completed_by_defaults(experiment):
    config = load(experiment)
    assert config == parse(BODY, "test")
    assert config.policy.kind == "threshold"
    assert config.sites["duck"].train_power_w == 2024.0


@pytest.mark.parametrize("key", ["gate.address", "flower.superlink"])
@pytest.mark.parametrize("address", ["train.example", "train.example:", ":8443", "train.example:0"])
def test_an_address_that_is_none_is_told_by_its_key(experiment, key, address):
    said = refusal(experiment, f"{key}={address}")
    assert said == f"{experiment}: {key} = {address!r}: is no address: write HOST:PORT"


def test_a_config_cannot_be_changed():
    config = parse(BODY, "test")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("seeed=1", "seeed: unknown key; did you mean seed?", id="top"),
        pytest.param("clock.sped=1", "clock.sped: unknown key; did you mean speed?", id="section"),
        pytest.param(
            "train.optim.matrix_rl=1",
            "train.optim.matrix_rl: unknown key; did you mean matrix_lr?",
            id="section-in-a-section",
        ),
        pytest.param(
            "sites.duck.train_powr_w=1",
            "sites.duck.train_powr_w: unknown key; did you mean train_power_w?",
            id="site",
        ),
        pytest.param(
            "sites.duck.microgrid.batery_wh=1",
            "sites.duck.microgrid.batery_wh: unknown key; did you mean battery_wh?",
            id="microgrid-of-a-site",
        ),
        pytest.param(
            "policy.linger=1",
            "policy.linger: unknown key; did you mean linger_s?",
            id="policy-of-the-usual-kind",
        ),
        pytest.param(
            'policy={kind="lookahead", start_shar=1}',
            "policy.start_shar: unknown key; did you mean start_share?",
            id="policy-of-another-kind",
        ),
        pytest.param(
            "policy.kind=treshold",
            "policy.kind = 'treshold': one of always, threshold, lookahead, deadline, budget",
            id="unknown-kind-of-policy",
        ),
        pytest.param(
            "plan.policies.mine={policy={kind='deadline'}}",
            "plan.policies.mine.policy.deadline_s: is required",
            id="a-row-of-the-plan-misses-a-key",
        ),
        pytest.param(
            "fleet.max_site=1", "fleet.max_site: unknown key; did you mean max_sites?", id="fleet"
        ),
        pytest.param(
            "plan.policies.mine={policy={linger=3}}",
            "plan.policies.mine.policy.linger: unknown key; did you mean linger_s?",
            id="in-a-row-of-the-plan",
        ),
        pytest.param(
            "policy={kind='budget', max_eur=3.0}",
            "sites.duck needs price_eur_per_kwh: a policy counts what power costs",
            id="money-without-a-price",
        ),
        pytest.param(
            "policy={kind='budget'}", "policy: kind 'budget' needs max_kg or max_eur", id="budget"
        ),
        pytest.param(
            "energy.forecast=good",
            "energy.forecast = 'good': Input should be 'none'",
            id="unknown-forecast",
        ),
        pytest.param(
            "footprint.site_pue.solr=1.2",
            "footprint.site_pue.solr is no site; did you mean solar?",
            id="pue-of-no-site",
        ),
        pytest.param(
            "footprint.site_gpus.oslo=4",
            "footprint.site_gpus.oslo is no site",
            id="gpus-of-no-site",
        ),
        pytest.param(
            "footprint.site_pue.solar=0.9",
            "footprint.site_pue.solar = 0.9: Input should be greater than or equal to 1",
            id="pue-below-one",
        ),
        pytest.param("polcy.kind=1", "polcy: unknown key; did you mean policy?", id="a-section"),
        pytest.param("zzzz=1", "zzzz: unknown key", id="nothing-is-near"),
        pytest.param("train.zzzz=1", "train.zzzz: unknown key", id="nothing-is-near-in-a-section"),
        pytest.param(
            "sites.duck.train_power_w=-5",
            "sites.duck.train_power_w = -5: Input should be greater than or equal to 0",
            id="negative-power",
        ),
        pytest.param(
            "sites.duck.idle_power_w=nan",
            "sites.duck.idle_power_w = nan: Input should be a finite number",
            id="no-power",
        ),
        pytest.param(
            "train.budget_tokens=many",
            "train.budget_tokens = 'many': Input should be a valid integer",
            id="word-for-a-number",
        ),
        pytest.param("train.budget_tokens=0", "train.budget_tokens = 0: Input", id="no-budget"),
        pytest.param(
            "sites.duck.preset=swan", "sites.duck needs a preset: one of ", id="unknown-preset"
        ),
        pytest.param(
            "energy.source=csv",
            "energy: source 'csv' needs path: --set energy.path=FILE",
            id="csv-no-path",
        ),
        pytest.param(
            "policy.leave_above_g_per_kwh=5",
            "policy: leave_above_g_per_kwh is below enter_below_g_per_kwh: it would flap",
            id="crossed-bands",
        ),
        pytest.param(
            "clock.start=now",
            "clock: speed other than 1 needs a start date: a trace cannot outrun now",
            id="fast-now",
        ),
        pytest.param(
            "clock.start=2026-07-24T06:00:00",
            "clock: '2026-07-24T06:00:00' names no time zone: write an offset such as +00:00",
            id="start-without-zone",
        ),
        pytest.param("clock.start=tomorrow", "clock: Invalid isoformat", id="start-no-time"),
        pytest.param("clock.speed=0", "clock.speed = 0: Input should be greater", id="stopped"),
        pytest.param("name=Demo!", "name = 'Demo!': String should match pattern", id="name"),
        pytest.param("name=", "name = '': String should match pattern", id="empty-name"),
        pytest.param("flower.port=65536", "flower.port = 65536: Input should be less", id="port"),
        pytest.param("sites={}", "sites: ", id="no-sites"),
        pytest.param("sites=3", "sites = 3: Input should be a valid dictionary", id="sites-value"),
        pytest.param("train=3", "train = 3: Input should be a valid dict", id="section-as-value"),
        pytest.param("model.depth=0", "model.depth = 0: Input should be greater", id="no-depth"),
        pytest.param(
            "sites.duck.utc_offset_h=99",
            "sites.duck.utc_offset_h = 99: ",
            id="no-such-time-zone",
        ),
        pytest.param(
            "sites.Duck.preset=duck", "sites.Duck: a site is named in a-z, 0-9 and '-'", id="site"
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_place_and_remedy(experiment, override, message):
    said = refusal(experiment, override)
    assert "\n" not in said
    assert said.startswith(f"{experiment}: {message}")


def test_each_problem_has_its_own_line(experiment):
    said = refusal(experiment, "seeed=1", "clock.speed=-1", "train.budget_tokens=0")
    assert [line.split(": ")[1].split(" ")[0] for line in said.splitlines()] == [
        "clock.speed",
        "train.budget_tokens",
        "seeed",
    ]


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError) as refused:
        parse({k: v for k, v in BODY.items() if k != "train"}, "x.toml")
    assert str(refused.value) == "x.toml: train: is required"


def test_a_csv_experiment_needs_a_region_for_each_site():
    body = {**BODY, "energy": {"source": "csv", "path": "mci.csv"}}
    with pytest.raises(ConfigError) as refused:
        parse(body, "x.toml")
    assert str(refused.value) == "x.toml: sites.duck needs region: its column in mci.csv"
    regions = {"sites": {"duck": {"region": "CAISO"}}}
    assert parse({**body, **regions}, "x.toml").sites["duck"].region == "CAISO"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_accepted(preset):
    assert parse({**BODY, "sites": {"a": {"preset": preset}}}, "test").sites["a"].preset == preset


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda p: None, "no such file; experiments/ holds examples", id="missing"),
        pytest.param(lambda p: p.mkdir(), "is a folder; name a TOML file", id="folder"),
        pytest.param(lambda p: p.write_text("name = "), "not valid TOML: Invalid", id="no-toml"),
        pytest.param(lambda p: p.write_bytes(b"\xff\xfe"), "not valid TOML: 'utf-8'", id="binary"),
        pytest.param(lambda p: p.write_text(""), "sites: is required", id="empty"),
        pytest.param(lambda p: p.symlink_to(p), "cannot be read: Too many levels", id="a-loop"),
    ],
)
def test_a_file_that_is_no_experiment_is_named(tmp_path, make, message):
    path = tmp_path / "demo.toml"
    make(path)
    said = refusal(path)
    assert message in said
    assert all(line.startswith(str(path)) for line in said.splitlines())


def test_a_file_below_a_file_is_named(experiment):
    assert "cannot be read: Not a directory" in refusal(experiment / "more.toml")


def test_a_config_that_was_written_is_read_back_whole(experiment):
    regions = ["sites.duck.region=X", "sites.solar.region=Y"]
    config = load(experiment, ["energy.source=csv", "energy.path=a/b.csv", *regions])
    assert parse(json.loads(dump(config)), "dumped") == config
    assert json.loads(dump(config))["train"]["optim"]["adam_betas"] == [0.8, 0.95]


OVERRIDES = [
    pytest.param("seed=3", ("seed",), 3, id="integer"),
    pytest.param("clock.speed=0.5", ("clock", "speed"), 0.5, id="float"),
    pytest.param("energy.allow_gaps=true", ("energy", "allow_gaps"), True, id="boolean"),
    pytest.param("name=oslo", ("name",), "oslo", id="bare-word"),
    pytest.param('name="oslo"', ("name",), "oslo", id="quoted-word"),
    pytest.param("a.b.c.d=1", ("a", "b", "c", "d"), 1, id="new-sections"),
    pytest.param("sites.north-1.preset=duck", ("sites", "north-1", "preset"), "duck", id="site"),
    pytest.param("energy.path=/a=b.csv", ("energy", "path"), "/a=b.csv", id="equals-in-the-value"),
    pytest.param("x=[1, 2]", ("x",), [1, 2], id="list"),
    pytest.param("x={a = 1}", ("x",), {"a": 1}, id="table"),
    pytest.param("x=", ("x",), "", id="empty"),
    pytest.param("x=10_000", ("x",), 10_000, id="underscores"),
    pytest.param("x=1e15", ("x",), 1e15, id="exponent"),
    pytest.param("x=2026-01-31 12", ("x",), "2026-01-31 12", id="no-toml"),
]


@pytest.mark.parametrize(("override", "path", "value"), OVERRIDES)
def test_an_override_sets_one_key_and_leaves_the_rest(override, path, value):
    body = json.loads(json.dumps(BODY))
    apply_override(body, override)
    found = body
    for name in path:
        found = found[name]
    assert found == value
    assert type(found) is type(value)
    untouched = {key: BODY[key] for key in BODY if key != path[0]}
    assert {key: body[key] for key in untouched} == untouched
    if path[0] == "sites":
        assert body["sites"]["duck"] == {"preset": "duck"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("seed", "--set seed: write --set section.key=value", id="no-equals"),
        pytest.param("", "--set : write --set section.key=value", id="empty"),
        pytest.param("=3", "--set =3: write --set section.key=value", id="no-key"),
        pytest.param(".seed=3", "--set .seed=3: write --set section.key=value", id="leading-dot"),
        pytest.param("clock.=3", "--set clock.=3: write --set section.key=value", id="no-name"),
        pytest.param("a..b=3", "--set a..b=3: write --set section.key=value", id="two-dots"),
        pytest.param("name.x=3", "--set name.x=3: name is a value, not a section", id="a-value"),
        pytest.param(
            "clock.speed.x=3", "--set clock.speed.x=3: speed is a value, not a section", id="deep"
        ),
    ],
)
def test_an_override_that_names_no_key_is_refused(experiment, override, message):
    assert refusal(experiment, override) == message


@pytest.mark.parametrize(
    "start", ["2026-07-24T06:00:00Z", "2026-07-24 08:00:00+02:00", '"2026-07-24T06:00:00+00:00"']
)
def test_a_start_needs_no_quotes(experiment, start):
    assert unix(load(experiment, [f"clock.start={start}"]).clock.start) == 1_784_872_800.0


def test_the_last_override_of_a_key_wins(experiment):
    assert load(experiment, ["seed=1", "seed=2"]).seed == 2


@settings(deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_no_override_ends_in_anything_but_a_config_or_its_refusal(key, value):
    body = json.loads(json.dumps(BODY))
    with contextlib.suppress(ConfigError):
        apply_override(body, f"{key}={value}")
        parse(body, "x.toml")


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tables = st.recursive(
    leaves, lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5
)
sections = st.sampled_from(sorted(Config.model_fields))


@settings(deadline=None)
@given(sections, tables)
def test_no_table_ends_in_anything_but_a_config_or_its_refusal(section, table):
    with contextlib.suppress(ConfigError):
        parse({**BODY, section: table}, "x.toml")


def test_overrides_reach_a_file_given_by_a_relative_path(experiment, monkeypatch):
    monkeypatch.chdir(experiment.parent)
    assert load(Path("demo.toml"), ["name=other"]).name == "other"
