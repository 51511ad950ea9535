"""TOML to one frozen Config; each section is owned by the module that reads it."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from uncurtail.core import grids, slots
from uncurtail.core.ending import RunSection
from uncurtail.core.events import unix
from uncurtail.core.fleet import FleetSection, SiteSection
from uncurtail.core.footprint import FootprintSection
from uncurtail.core.planner import PlanSection
from uncurtail.core.policy import KINDS, AnyPolicy, Threshold, counts_money, kind_of
from uncurtail.core.rounds import RoundsSection
from uncurtail.core.section import Place, Section
from uncurtail.energysection import EnergySection
from uncurtail.errors import UserError
from uncurtail.lm.sections import DataSection, ModelSection, TrainSection
from uncurtail.sync.sections import OuterSection


class ConfigError(UserError):
    """What a user got wrong in an experiment: one line with the remedy."""


class ClockSection(Section):
    """How simulated time runs against the wall clock."""

    start: str = "now"  # ISO 8601 with offset; "now" for a run in real time
    speed: float = Field(default=1.0, gt=0)

    @field_validator("start", mode="before")
    @classmethod
    def _a_time_needs_no_quotes(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value

    @model_validator(mode="after")
    def _a_scaled_clock_needs_a_start(self) -> Self:
        if self.start != "now":
            unix(self.start)
        elif self.speed != 1.0:
            raise ValueError("speed other than 1 needs a start date: a trace cannot outrun now")
        return self


class FlowerSection(Section):
    """The control plane: a SuperLink of the run's own, or one that is there already.

    One that is there must be this run's alone while it lasts: whoever shares it could be given our
    app to run, and we theirs. It runs with `--isolation process`, `--enable-supernode-auth` and no
    SuperExec of its own. UNCURTAIL_SUPEREXEC_SECRET(_FILE) holds what its
    `--superexec-auth-secret-file` says.
    """

    port: int = Field(default=0, ge=0, le=65535)  # of our own; 0: a free one
    superlink: Place | None = None  # HOST:PORT of one that is there
    superlink_ca: Path | None = None  # what its certificate is checked with (PEM)
    # Of a coordinator that dies within two minutes of its start, one after the other; then the run
    # ends, and can be resumed.
    restarts: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _a_superlink_is_known_by_its_authority(self) -> Self:
        if self.superlink is not None and self.superlink_ca is None:
            raise ValueError("superlink needs superlink_ca: the certificate of its authority")
        return self


class GateSection(Section):
    """The one door for sites on other machines: TLS, a token for each site, few paths."""

    address: Place | None = None  # HOST:PORT at which they reach this machine; unset: no gate
    listen: str = "0.0.0.0"


class StoreSection(Section):
    """The payload plane. Unset: a folder of the run."""

    url: str | None = None
    wire_dtype: Literal["bf16", "fp32"] = "bf16"
    # A run needs room for this much before it starts.
    min_free_bytes: int = Field(default=1_000_000_000, ge=0)


class TrackingSection(Section):
    """Where metrics go besides the run folder. WANDB_API_KEY(_FILE) holds the key of `online`."""

    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = Field(default="uncurtail", min_length=1)
    tensorboard: bool = False


class Config(Section):
    """One experiment."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    seed: int = Field(default=0, ge=0)
    clock: ClockSection = ClockSection()
    run: RunSection = RunSection()
    energy: EnergySection = EnergySection()
    policy: AnyPolicy = Threshold()
    plan: PlanSection = PlanSection()
    fleet: FleetSection = FleetSection()
    sites: dict[str, SiteSection] = Field(min_length=1)
    rounds: RoundsSection = RoundsSection()
    flower: FlowerSection = FlowerSection()
    gate: GateSection = GateSection()
    store: StoreSection = StoreSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection
    outer: OuterSection = OuterSection()
    tracking: TrackingSection = TrackingSection()
    footprint: FootprintSection = FootprintSection()

    @model_validator(mode="before")
    @classmethod
    def _the_fleet_owns_max_sites(cls, body: Any) -> Any:
        """`plan.max_sites` holds for runs as well: it is fleet.max_sites by another name."""
        if not isinstance(body, dict):
            return body
        plan, fleet = body.get("plan"), body.get("fleet", {})
        if not isinstance(plan, dict) or "max_sites" not in plan or not isinstance(fleet, dict):
            return body
        plan = {key: value for key, value in plan.items() if key != "max_sites"}
        told, before = body["plan"]["max_sites"], fleet.get("max_sites")
        if None not in (told, before) and told != before:
            raise ValueError(
                f"plan.max_sites {told} and fleet.max_sites {before} are one setting: "
                "keep fleet.max_sites"
            )
        fleet = {**fleet, "max_sites": before if told is None else told}
        return {**body, "plan": plan, "fleet": fleet}

    @model_validator(mode="after")
    def _footprint_names_sites(self) -> Self:
        for key in ("site_pue", "site_gpus"):
            for name in getattr(self.footprint, key):
                if name not in self.sites:
                    near = difflib.get_close_matches(name, self.sites, n=1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(f"footprint.{key}.{name} is no site{hint}")
        return self

    @model_validator(mode="after")
    def _sites_have_a_place(self) -> Self:
        slots.check(self.fleet, self.sites)
        return self

    @model_validator(mode="after")
    def _sites_have_a_signal(self) -> Self:
        for name, site in self.sites.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
                raise ValueError(f"sites.{name}: a site is named in a-z, 0-9 and '-'")
            if self.train.batch_sequences % site.ranks:
                raise ValueError(
                    f"sites.{name}.ranks {site.ranks} cannot share train.batch_sequences "
                    f"{self.train.batch_sequences}: make it a multiple of the ranks"
                )
            if self.energy.source == "csv" and site.region is None:
                raise ValueError(f"sites.{name} needs region: its column in {self.energy.path}")
            if self.energy.live and self.energy.source != "vessim" and site.region is None:
                raise ValueError(f"sites.{name} needs region, as {self.energy.source} names it")
            if self.energy.source == "synthetic" and site.preset not in grids.PRESETS:
                known = ", ".join(sorted(grids.PRESETS))
                raise ValueError(f"sites.{name} needs a preset: one of {known}")
        return self

    @model_validator(mode="after")
    def _a_cap_has_a_site(self) -> Self:
        policies = {"policy": self.policy} | {
            f"plan.policies.{name}.policy": row.policy for name, row in self.plan.policies.items()
        }
        for name, policy in policies.items():
            capped = policy.cap_below_g_per_kwh is not None
            if capped and all(site.capped_power_w is None for site in self.sites.values()):
                raise ValueError(
                    f"{name}.cap_below_g_per_kwh caps nothing: give at least one site "
                    "capped_power_w and capped_speed"
                )
        return self

    @model_validator(mode="after")
    def _a_live_source_tells_only_now(self) -> Self:
        source = self.energy.source
        if self.energy.live and (self.clock.speed != 1.0 or self.clock.start != "now"):
            raise ValueError(
                f"energy.source {source!r} tells only what is now: set clock.speed = 1 and "
                'clock.start = "now", or fetch a trace first with uncurtail energy fetch'
            )
        price = self.energy.price
        real_time = self.clock.speed == 1.0 and self.clock.start == "now"
        if price is not None and price.source == "prometheus" and not real_time:
            raise ValueError(
                "energy.price.source 'prometheus' tells only what is now: set clock.speed = 1 and "
                'clock.start = "now", or name a file: --set energy.price.source=csv --set '
                "energy.price.path=FILE"
            )
        if source == "electricitymaps" and self.policy.stale_after_s < 3600.0:
            raise ValueError(
                "Electricity Maps publishes by the hour: set policy.stale_after_s = 5400, or every "
                "value is stale before the next"
            )
        return self

    @model_validator(mode="after")
    def _measured_power_is_of_real_time(self) -> Self:
        for name, site in self.sites.items():
            if site.power_from == "model":
                continue
            if self.clock.speed != 1.0:
                raise ValueError(
                    f"sites.{name}.power_from {site.power_from!r} measures real watts: set "
                    'clock.speed = 1, or power_from = "model"'
                )
            if site.power_from == "prometheus" and None in (
                site.power_query,
                self.energy.prometheus_url,
            ):
                raise ValueError(
                    f"sites.{name}.power_from 'prometheus' needs its power_query and "
                    "energy.prometheus_url: http://HOST:9090"
                )
        return self

    @model_validator(mode="after")
    def _money_has_a_price(self) -> Self:
        policies = [self.policy, *(row.policy for row in self.plan.policies.values())]
        if any(map(counts_money, policies)):
            for name, site in self.sites.items():
                if site.price_eur_per_kwh is None:
                    raise ValueError(
                        f"sites.{name} needs price_eur_per_kwh: a policy counts what power costs"
                        + (", also while energy.price does not say" if self.energy.price else "")
                    )
        return self


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The experiment in a TOML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: One line a problem, each with the remedy.
    """
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; experiments/ holds examples") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        apply_override(body, override)
    return parse(body, str(path))


def parse(body: Mapping[str, Any], source: str) -> Config:
    """A Config from plain tables; `source` names them in errors."""
    try:
        return Config.model_validate(body)
    except ValidationError as error:
        lines = [f"{source}: {_explain(item)}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


S = TypeVar("S", bound=Section)


def section(kind: type[S], body: Mapping[str, Any], name: str) -> S:
    """One section alone, outside of an experiment.

    Raises:
        ConfigError: One line a problem, each with the remedy.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        found = [{**item, "loc": (name, *item["loc"])} for item in error.errors()]
        raise ConfigError("\n".join(_explain(item) for item in found)) from None


def dump(config: Config) -> str:
    """The resolved config as JSON: every default written out. `parse` reads it back."""
    return json.dumps(config.model_dump(mode="json"), indent=1)


def apply_override(body: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in the tables; c is TOML, or else a plain string.

    Raises:
        ConfigError: No `=`, or a part of the path is a value.
    """
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"--set {override}: write --set section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = dotted.split(".")
    table = body
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {name} is a value, not a section")
    table[key] = value


def _explain(item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    names, known = _along(location)
    where = ".".join(names)
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{where}: unknown key{hint}"
    if item["type"] == "union_tag_invalid":
        return f"{where}.kind = {kind_of(item['input'])!r}: one of {', '.join(KINDS)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{where}: is required"
    if not where:
        return message
    given = item.get("input")
    shown = f" = {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{where}{shown}: {message}"


def _along(location: list[str]) -> tuple[list[str], list[str]]:
    """What a user calls this place, and the keys of the table that its last part is in.

    Where a table's kind chooses its section, pydantic names the kind as if it were a key.
    """
    names: list[str] = []
    known: list[str] = []
    inside: Any = Config
    for part in location:
        chosen = _by_kind(inside).get(part)
        if chosen is not None:
            inside = chosen
            continue
        names.append(part)
        if isinstance(inside, type) and issubclass(inside, BaseModel):
            known = list(inside.model_fields)
            inside = _present(inside.model_fields[part].annotation) if part in known else None
        else:
            known = []
            inside = get_args(inside)[1] if get_origin(inside) is dict else None
    return names, known


def _present(annotation: Any) -> Any:
    """The section of one that may be left out; anything else as it is."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    return sections[0] if len(members) == len(sections) == 1 else annotation


def _by_kind(annotation: Any) -> dict[str, Any]:
    """The sections of a union, by their kind."""
    members = [get_args(member)[0] for member in get_args(annotation) if get_args(member)]
    return {
        str(member.model_fields["kind"].default): member
        for member in members
        if isinstance(member, type) and issubclass(member, BaseModel)
    }
