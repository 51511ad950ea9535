"""A run's whole account as `summary["footprint"]`: what core/footprint.py makes of its folder."""

from dataclasses import asdict
from typing import Any

from uncurtail.adapters.traces import load_csv
from uncurtail.core import footprint as account
from uncurtail.core.counterfactual import run_now, together_kg
from uncurtail.core.events import OrderSent, UpdateAccepted, UpdateRejected
from uncurtail.core.fleet import Phase
from uncurtail.core.footprint import Accounts, Basis, FootprintSection
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.signals import PLAUSIBLE_G_PER_KWH, Trace
from uncurtail.report.paid import declared_note, price_traces
from uncurtail.report.rundata import RunData

# Beyond any market's cap per kWh, and beyond any site's watts.
PLAUSIBLE_PRICE = (-100.0, 100.0)
PLAUSIBLE_W = (0.0, 1e9)


def footprint(run: RunData) -> dict[str, Any] | None:
    """Energy, both emissions, cost, network, embodied carbon, SCI and counterfactuals of a run.

    A declared file that cannot be used leaves its numbers unknown, and is named in `notes`. None
    for a run of which nothing was metered.
    """
    if not run.segments or run.start is None or run.end is None:
        return None
    section = FootprintSection.model_validate(run.config.get("footprint", {}))
    notes: list[str] = []
    signals = _signals(run, section, notes)
    measured = _load(run, section.power_path, (PLAUSIBLE_W, "W"), notes)
    pue = {site: section.pue_of(site) for site in run.sites}
    drawing = [s for s in run.segments if s.phase != Phase.RELEASED or s.grid_w > 0.0]
    accounts = account.account(account.draws(drawing, measured), signals, pue)
    everything = account.total(accounts)
    basis = own_basis(run)
    amount_g = everything.amount(basis)
    priced_j = everything.energy_j - everything.unknown_j.get(basis, 0.0)
    mean_g = None if amount_g is None or priced_j <= 0 else amount_g / (priced_j / J_PER_KWH)
    moved = _bytes_moved(run)
    net = None if moved is None else account.network(section, moved, mean_g)
    made = account.embodied(section, _used_s(accounts, run), run.end - run.start)
    return {
        "basis": basis.value,
        "pue": pue,
        "currency": section.currency,
        "total": account.to_json(everything),
        "sites": _by_site(accounts, run),
        "network": None if net is None else asdict(net),
        "embodied": asdict(made),
        "sci_kg_per_million_tokens": _sci(run, amount_g, net, made),
        "counterfactuals": _counterfactuals(run, pue),
        "notes": notes,
    }


def own_basis(run: RunData) -> Basis:
    """What the signal that the run's policy acted on measures."""
    energy = run.config.get("energy", {})
    averages = energy.get("source") == "electricitymaps"
    return Basis(energy.get("kind") or (Basis.AVERAGE if averages else Basis.MARGINAL))


def _signals(
    run: RunData, section: FootprintSection, notes: list[str]
) -> dict[Basis, dict[str, Trace]]:
    signals = {own_basis(run): run.traces}
    average = _load(run, section.average_path, (PLAUSIBLE_G_PER_KWH, "gCO2/kWh"), notes)
    price = _load(run, section.price_path, (PLAUSIBLE_PRICE, f"{section.currency}/kWh"), notes)
    if average:
        signals[Basis.AVERAGE] = average
    if section.price_path is None and section.currency == "EUR":
        price = price_traces(run)
        note = declared_note(run)
        notes += [] if note is None else [note]
    if price:
        signals[Basis.PRICE] = price
    return signals


def _load(
    run: RunData, path: str | None, wanted: tuple[tuple[float, float], str], notes: list[str]
) -> dict[str, Trace]:
    """Each site's column: named as the site, or as its region."""
    if path is None:
        return {}
    plausible, unit = wanted
    found: dict[str, Trace] = {}
    problems: list[str] = []
    for site in run.sites:
        for column in (site, run.config["sites"][site].get("region")):
            if column is None or site in found:
                continue
            try:
                columns = load_csv(path, [column], allow_gaps=True, plausible=plausible, unit=unit)
            except ValueError as error:
                problems.append(str(error))
            else:
                found[site] = columns[column]
        if site not in found:
            notes += [problem for problem in problems[-1:] if problem not in notes]
    return found


def _by_site(accounts: Accounts, run: RunData) -> dict[str, Any]:
    return {
        site: {
            "total": account.to_json(account.total(accounts, site=site)),
            "phases": {
                phase.value: account.to_json(accounts[site, phase])
                for phase in Phase
                if (site, phase) in accounts
            },
        }
        for site in run.sites
    }


def _used_s(accounts: Accounts, run: RunData) -> dict[str, float]:
    """How long each site was provisioned, starts included."""
    up = {key: one for key, one in accounts.items() if key[1] != Phase.RELEASED}
    return {site: account.total(up, site=site).duration_s for site in run.sites}


def _bytes_moved(run: RunData) -> float | None:
    """A model down for each order, a delta up for each answer; None without a model to weigh."""
    if not run.commits:
        return None
    model = run.folder.path / run.commits[-1].model
    if not model.is_file():
        return None
    model_bytes = model.stat().st_size
    halved = run.config.get("store", {}).get("wire_dtype", "bf16") == "bf16"
    down = {(e.round, e.site, e.session) for e in run.events if isinstance(e, OrderSent)}
    up = sum(isinstance(e, UpdateAccepted | UpdateRejected) for e in run.events)
    return model_bytes * (len(down) + up * (0.5 if halved else 1.0))


def _sci(
    run: RunData, amount_g: float | None, net: account.Network | None, made: account.Embodied
) -> dict[str, float | None]:
    """(E*I + M) / R, with the GPUs' making by the hours used and by the hours reserved."""
    tokens = run.commits[-1].tokens if run.commits else 0
    if amount_g is None:
        return {"used": None, "reserved": None}
    operational_kg = amount_g / 1000.0 + (0.0 if net is None else net.kg or 0.0)
    return {
        "used": account.carbon_intensity(operational_kg, made.used_kg, tokens),
        "reserved": account.carbon_intensity(operational_kg, made.reserved_kg, tokens),
    }


def _counterfactuals(run: RunData, pue: dict[str, float]) -> dict[str, Any]:
    """The same training in other ways, at the facility's meter as the run itself."""
    assert run.start is not None
    traces = {site: trace for site, trace in run.traces.items() if site in run.sites}
    train_w = {site: run.train_power_w(site) * pue[site] for site in traces}
    alone = {site: None if kg is None else kg * pue[site] for site, kg in run.baselines_kg.items()}
    arguments = (traces, run.known_from, run.train_s, train_w)
    if run.train_s <= 0:
        return {"alone_kg": alone, "all_on_kg": None, "run_now": None}
    now = run_now(*arguments)
    several = len(traces) == len(run.sites) > 1
    return {
        "alone_kg": alone,
        "all_on_kg": together_kg(*arguments) if several else None,
        "run_now": None if now is None else asdict(now),
    }
