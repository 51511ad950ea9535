"""A run in a few lines for the terminal, as a rich renderable."""

from typing import TYPE_CHECKING, Any

from uncurtail.core.ledger import J_PER_KWH
from uncurtail.report.footprintrows import footprint_line
from uncurtail.report.rundata import RunData
from uncurtail.report.style import count, duration, mass, number, percent
from uncurtail.report.words import headline, possible
from uncurtail.runfolder import RunFolder

if TYPE_CHECKING:
    from rich.console import Group, RenderableType


def summary_table(summary: dict[str, Any], folder: RunFolder) -> "Group":
    """The headline, the run's numbers, a row for each site, and where the report lies.

    Args:
        summary: What `write_summary` returned.
        folder: The run's folder, for what its sites did.
    """
    from rich.console import Group
    from rich.text import Text

    run = RunData(folder)
    parts: list[RenderableType] = [
        Text(headline(run.emissions_kg(), run.baselines_kg), style="bold green")
    ]
    if run.ended is None:
        parts.append(Text("The run has not ended: numbers so far.", style="yellow"))
    parts += [_numbers(summary), Text(""), _sites(run, summary), Text("")]
    if run.own_kwh:
        parts += [_own(run), Text("")]
    where = folder.report if folder.report.exists() else folder.path
    parts.append(Text(f"report  {where}", style="cyan", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def _numbers(summary: dict[str, Any]) -> "RenderableType":
    from rich.table import Table

    policy = next(iter(summary["policies"].values()))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    share = percent(policy["in_window_share"])
    table.add_row("energy", f"{number(policy['energy_kwh'], 'kWh')}, in windows: {share}")
    table.add_row("best possible", possible(policy["gap_to_oracle"], summary["oracle"]))
    table.add_row("footprint", footprint_line(summary["footprint"]))
    first, last = (_loss(summary[key]) for key in ("val_loss_first", "val_loss_last"))
    table.add_row("validation loss", f"{first} → {last}")
    tokens = count(summary["tokens"])
    overhead = percent(summary["round_overhead_share"])
    table.add_row("tokens", f"{tokens}, rounds: {summary['rounds']}, round overhead: {overhead}")
    simulated = number(policy["makespan_h"], "h")
    wall = duration(summary["wall_s"])
    table.add_row("time", f"{simulated} simulated to the last commit, {wall} by the wall clock")
    return table


def _sites(run: RunData, summary: dict[str, Any]) -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("site")
    for name in ("starts", "trained h", "kWh", "CO₂", "alone, always on"):
        table.add_column(name, justify="right")
    for site in run.sites:
        total = run.ledger.total(site=site)
        trained_s = run.worked_s(site)
        table.add_row(
            site,
            str(run.provisions(site)),
            f"{trained_s / 3600.0:.2f}" if run.segments else "unknown",
            f"{total.energy_j / J_PER_KWH:.2f}" if run.segments else "unknown",
            mass(run.emissions_kg(site)),
            mass(summary["baselines"][site]),
        )
    return table


def _own(run: RunData) -> "RenderableType":
    """Where the power of sites with microgrids came from."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("microgrid")
    for name in ("solar kWh", "battery kWh", "grid kWh", "grid into battery"):
        table.add_column(name, justify="right")
    for site, kwh in run.own_kwh.items():
        table.add_row(site, *(f"{value:.2f}" for value in kwh.values()))
    return table


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
