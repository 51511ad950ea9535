"""One self-contained page about a run: `report.html` loads nothing from anywhere."""

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from uncurtail.core.ledger import J_PER_KWH, Tally
from uncurtail.report import charts
from uncurtail.report.footprintrows import footprint_rows
from uncurtail.report.rundata import DRAWING, RunData
from uncurtail.report.style import count, duration, mass, number, percent
from uncurtail.report.summary import summarise_data
from uncurtail.report.words import headline, more_or_less, story
from uncurtail.runfolder import RunFolder, write_atomic

MAX_EVENTS = 400
ALL = "all sites"
OWN = (
    "What a site's own sun and battery gave emits nothing and counts as in a window; what the grid "
    "put into the battery emitted when it did. Nothing is lost in a battery.",
    "Baselines have no microgrid. With batteries, the best possible may be a proven bound that no "
    "schedule reaches.",
)
NOTHING = '<p class="muted">Nothing to show yet.</p>'


def write_report(folder: RunFolder, summary: dict[str, Any] | None = None) -> Path:
    """Write report.html, whole or not at all; returns its path. An unfinished run is told so far.

    Args:
        folder: The run's.
        summary: What `write_summary` just returned, where it did: an oracle is not found twice.

    Raises:
        FileNotFoundError: It is no run folder.
    """
    write_atomic(folder.report, render(RunData(folder), summary))
    return folder.report


def render(run: RunData, summary: dict[str, Any] | None = None) -> str:
    """The page as HTML."""
    from plotly.offline import get_plotlyjs

    summary = summarise_data(run) if summary is None else summary
    template = Template(files("uncurtail.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        plotly_js=get_plotlyjs(),
        name=escape(run.name),
        headline=escape(headline(run.emissions_kg(), run.baselines_kg)),
        when=escape(_when(run)),
        banner=_banner(run),
        cards="\n".join(_cards(summary)),
        windows=_chart(charts.windows(run), "windows"),
        loss=_chart(charts.loss(run), "loss"),
        emissions=_chart(charts.emissions(run), "emissions"),
        power=_chart(charts.power(run), "power"),
        baselines=_baselines(run, summary),
        phases=_phases(run) + _own(run),
        footprint=_footprint(summary),
        events=_events(run),
        assumptions="\n".join(f"<li>{escape(text)}</li>" for text in assumptions(run)),
    )


def assumptions(run: RunData) -> list[str]:
    """What a reader must grant to believe the numbers."""
    return [
        "Carbon intensity is held stepwise: each reading holds until the next one.",
        "Power is each site's declared watts for its phase (a power model, not a wattmeter), "
        "unless the run's power was metered.",
        "Every phase counts, from the first request for a site to its release: provisioning, "
        "idle, training, draining, releasing.",
        "A baseline is one site alone, always on from the run's start, for as many training hours "
        "as all sites of the run together, at training power. Starting and idling cost it nothing.",
        "A baseline is unknown when the run's own readings do not cover those hours.",
        "The best possible knew every reading beforehand: the least emissions for the same "
        "training by the same end, with starts and idling, in whole slots of five minutes at "
        "most. It is unknown when the run's own readings do not suffice for that work.",
        "At the meter is machine energy times the site's PUE. Marginal intensity says what the "
        "grid emitted because of this load, average intensity what share of all is this load's.",
        "The making of GPUs is spread evenly over their life: once over the hours in which sites "
        "were up, once over all hours of the run at all sites, since nobody else had them.",
        "The network is an estimate: a model for each order and an update for each answer, times "
        "the declared kWh per GB, at the mean intensity of the run.",
        f"In the window means drawn while the intensity was below {run.enter_below_g_per_kwh:g} "
        "gCO₂/kWh. Sites may finish a step above it.",
        "Energy drawn while nobody knew the intensity counts as energy, but no emissions are "
        "invented for it; it is listed in the table.",
        "Round overhead is the share of the time that ready sites in an open window did not step.",
        "Unknown means that the run folder does not say; it is never shown as 0.",
        *(OWN if run.own_kwh else ()),
    ]


def _when(run: RunData) -> str:
    if run.start is None or run.end is None:
        return "This run has not started."
    wall = duration(run.events[-1].wall_s - run.events[0].wall_s)
    span = f"{_moment(run.start)} to {_moment(run.end)} UTC, simulated time"
    return f"{span} · {wall} by the wall clock · policy: {run.policy}"


def _banner(run: RunData) -> str:
    if run.ended is not None:
        return ""
    return '<p class="banner">This run has not ended. What follows is what is known so far.</p>'


def _cards(summary: dict[str, Any]) -> Iterable[str]:
    policy = next(iter(summary["policies"].values()))
    emitted = policy["emissions_kg"]
    yield _card(mass(emitted), "CO₂ emitted, all phases", lead=True)
    known = sorted((kg, site) for site, kg in summary["baselines"].items() if kg)
    if known and emitted is not None:
        (best_kg, best), (worst_kg, worst) = known[0], known[-1]
        yield _card(percent(emitted / best_kg), f"of the best site alone ({best})", lead=True)
        if worst != best:
            label = f"of the worst site alone ({worst})"
            yield _card(percent(emitted / worst_kg), label, lead=True)
    gap, best_kg = policy["gap_to_oracle"], summary["oracle"]["emissions_kg"]
    if best_kg is not None:
        over = "" if gap is None else f"; this run emitted {more_or_less(gap)}"
        yield _card(mass(best_kg), f"best possible, by hindsight{over}")
    yield _card(number(policy["energy_kwh"], "kWh"), "energy, all phases")
    yield _card(percent(policy["in_window_share"]), "of it drawn in windows")
    losses = [summary["val_loss_first"], summary["val_loss_last"]]
    first, last = ("unknown" if value is None else f"{value:.2f}" for value in losses)
    yield _card(f"{first} → {last}", "validation loss (nats per token)")
    yield _card(count(summary["tokens"]), f"tokens in {summary['rounds']} rounds")
    yield _card(number(policy["makespan_h"], "h"), "from start to last commit (simulated)")
    yield _card(percent(summary["round_overhead_share"]), "round overhead")


def _card(value: str, label: str, *, lead: bool = False) -> str:
    kind = "card lead" if lead else "card"
    return f'<div class="{kind}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _chart(figure: charts.Figure | None, name: str) -> str:
    if figure is None:
        return NOTHING
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"chart-{name}", config=charts.CONFIG
    )
    return html


def _baselines(run: RunData, summary: dict[str, Any]) -> str:
    emitted = next(iter(summary["policies"].values()))["emissions_kg"]
    head = ("always on at", "training power", "would have emitted", "this run is")
    rows: list[tuple[str, ...]] = []
    for site, kg in summary["baselines"].items():
        share = emitted / kg if emitted is not None and kg else None
        watts = number(run.train_power_w(site) / 1000.0, "kW")
        rows.append((site, watts, mass(kg), percent(share)))
    return _table(head, rows)


def _footprint(summary: dict[str, Any]) -> str:
    told = footprint_rows(summary["footprint"])
    return _table(("", ""), told, texts=2) if told else NOTHING


def _phases(run: RunData) -> str:
    head = ("site", "phase", "hours", "kWh", "kg CO₂", "kWh at unknown intensity")
    rows: list[tuple[str, ...]] = []
    for site in run.sites:
        for phase in DRAWING:
            tally = run.ledger.total(site=site, phase=phase)
            if tally.duration_s > 0:
                rows.append((site, phase.value, *_tally(tally)))
    total = run.ledger.total()
    hours_s = sum(run.ledger.total(phase=phase).duration_s for phase in DRAWING)
    total.duration_s = hours_s  # without the hours in which sites were released
    rows.append((ALL, "all phases", *_tally(total)))
    return _table(head, rows, texts=2)


def _own(run: RunData) -> str:
    if not run.own_kwh:
        return ""
    head = ("microgrid", "solar kWh", "battery kWh", "grid kWh", "of it into the battery")
    rows = [
        (site, *(f"{value:,.3f}" for value in kwh.values())) for site, kwh in run.own_kwh.items()
    ]
    return _table(head, rows)


def _tally(tally: Tally) -> tuple[str, str, str, str]:
    nothing_priced = 0 < tally.energy_j <= tally.unpriced_j
    return (
        f"{tally.duration_s / 3600.0:,.2f}",
        f"{tally.energy_j / J_PER_KWH:,.3f}",
        "unknown" if nothing_priced else f"{tally.emissions_g / 1000.0:,.4f}",
        f"{tally.unpriced_j / J_PER_KWH:,.3f}" if tally.unpriced_j else "",
    )


def _events(run: RunData) -> str:
    told = story(run.events)
    left_out = ""
    if len(told) > MAX_EVENTS:
        half = MAX_EVENTS // 2
        left_out = f"{len(told) - MAX_EVENTS} events in the middle are left out here. "
        told = told[:half] + told[-half:]
    rows = "\n".join(
        f'<tr class="{kind}"><td>{_moment(t)}</td><td>{escape(text)}</td></tr>'
        for t, kind, text in told
    )
    note = f'<p class="note">{left_out}Orders and single phases are in events.jsonl.</p>'
    return f'{note}<div class="events"><table>{rows}</table></div>' if rows else NOTHING


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, texts: int = 1) -> str:
    """A table whose first `texts` columns are text; one that begins with `ALL` is a sum."""
    lines = [f"<tr>{_cells('th', head, texts)}</tr>"]
    for row in rows:
        values = list(row)
        kind = ' class="sum"' if values[0] == ALL else ""
        lines.append(f"<tr{kind}>{_cells('td', values, texts)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cells(tag: str, values: Iterable[str], texts: int) -> str:
    return "".join(
        f"<{tag}{' class=text' if i < texts else ''}>{escape(value)}</{tag}>"
        for i, value in enumerate(values)
    )


def _moment(t: float) -> str:
    return datetime.fromtimestamp(t, tz=UTC).strftime("%Y-%m-%d %H:%M")
