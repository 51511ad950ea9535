"""The figures of a run, interactive: plotly figures for the page. plotly is imported lazily."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncurtail.report import curves
from uncurtail.report.rundata import RunData
from uncurtail.report.style import (
    DIM,
    GRID,
    INK,
    MUTED,
    PHASE_COLOURS,
    UNKNOWN,
    WINDOW,
    mass,
    site_colours,
)

# plotly has no types: its figures are Any, and stay in this module and the page.
Figure = Any
CONFIG = {
    "displayModeBar": False,  # it would cover the legend; dragging and double-clicking still work
    "responsive": True,
}
ROW_PX = 150


def windows(run: RunData) -> Figure | None:
    """Per site: intensity, windows, and what the site did."""
    from plotly.subplots import make_subplots

    if run.start is None or run.end is None or run.end <= run.start:
        return None
    num = len(run.sites)
    titles = [f"<b>{site}</b>" for site in run.sites]
    gap = min(0.06, 0.28 / num)
    figure = make_subplots(num, 1, shared_xaxes=True, vertical_spacing=gap, subplot_titles=titles)
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    top = curves.highest(run)
    for i, site in enumerate(run.sites):
        _site_row(figure, run, site, i + 1, top)
    _look(figure, ROW_PX * num + 90)
    figure.update_yaxes(range=[-0.27 * top, top], title={"text": "gCO₂/kWh", "font": {"size": 11}})
    figure.update_xaxes(range=[_stamp(run.start), _stamp(run.end)])
    figure.update_layout(barmode="overlay", bargap=0)
    return figure


def _site_row(figure: Figure, run: RunData, site: str, row: int, top: float) -> None:
    from plotly import graph_objects as go

    place = {"row": row, "col": 1}
    times, values = curves.intensity(run, site)
    for phase in run.drawing:
        spans = [span for span in run.phases(site) if span.label == phase]
        figure.add_trace(
            go.Bar(
                x=[_stamp((span.start + span.end) / 2) for span in spans],
                width=[(span.end - span.start) * 1000.0 for span in spans],
                y=[0.2 * top] * len(spans),
                base=[-0.27 * top] * len(spans),
                marker={"color": PHASE_COLOURS[phase], "line": {"width": 0}},
                name=phase.value,
                legendgroup=phase.value,
                showlegend=row == 1,
                hovertext=[f"{phase.value} {(s.end - s.start) / 3600:.2f} h" for s in spans],
                hoverinfo="text",
            ),
            **place,
        )
    figure.add_trace(
        go.Scatter(
            x=_stamps(times), y=values, mode="lines", name="carbon intensity",
            line={"color": INK, "width": 1.6, "shape": "hv"}, showlegend=row == 1,
            legendgroup="intensity", hovertemplate="%{y:.0f} gCO₂/kWh<extra></extra>",
        ),
        **place,
    )  # fmt: skip
    # After the traces: plotly leaves out the shapes of a subplot that is still empty.
    for window in run.windows(site):
        _shade(figure, window.start, window.end, WINDOW, place)
    for window in run.dim_windows(site):
        _shade(figure, window.start, window.end, DIM, place)
    for i in np.flatnonzero(np.isnan(values[:-1])):
        _shade(figure, times[i], times[i + 1], UNKNOWN, place)
    figure.add_hline(
        run.enter_below_g_per_kwh, line={"color": MUTED, "width": 1, "dash": "dash"}, **place
    )


def loss(run: RunData) -> Figure | None:
    """Training and validation loss, over time and over tokens."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    sites = list(curves.losses(run))
    validated = run.evaluations
    if not sites and not validated:
        return None
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    colours = site_colours(run.sites)
    for site, times, tokens, losses in sites:
        dots = {"size": 4, "opacity": 0.5, "color": colours[site]}
        for col, x in ((1, _stamps(times)), (2, tokens)):
            figure.add_trace(
                go.Scattergl(
                    x=x, y=losses, mode="markers", marker=dots, name=site,
                    legendgroup=site, showlegend=col == 1, hovertemplate="%{y:.3f}",
                ),
                row=1, col=col,
            )  # fmt: skip
    val = [event.val_loss for event in validated]
    at = [_stamp(event.t) for event in validated]
    by_tokens = [event.tokens for event in validated]
    for col, xs in ((1, at), (2, by_tokens)):
        figure.add_trace(
            go.Scatter(
                x=xs, y=val, mode="lines+markers", line={"color": INK, "width": 1.5},
                marker={"symbol": "diamond", "size": 7}, name="validation",
                legendgroup="validation", showlegend=col == 1, hovertemplate="%{y:.3f}",
            ),
            row=1, col=col,
        )  # fmt: skip
    _look(figure, 380)
    figure.update_yaxes(title="loss (nats per token)", col=1)
    figure.update_xaxes(title="simulated time (UTC)", col=1)
    figure.update_xaxes(title="tokens, all sites", col=2)
    return figure


def power(run: RunData) -> Figure | None:
    """Power of each site, stacked."""
    from plotly import graph_objects as go

    edges, by_site = curves.power_kw(run)
    if len(edges) < 2:
        return None
    figure = go.Figure()
    colours = site_colours(run.sites)
    for site in run.sites:
        figure.add_trace(
            go.Scatter(
                x=_stamps(edges), y=np.append(by_site[site], by_site[site][-1]), name=site,
                mode="lines", stackgroup="all", fillcolor=colours[site],
                line={"width": 0, "shape": "hv", "color": colours[site]},
                hovertemplate="%{y:.2f} kW",
            )
        )  # fmt: skip
    _look(figure, 300)
    figure.update_yaxes(title="power (kW)", rangemode="tozero")
    figure.update_layout(hovermode="x unified")
    return figure


def emissions(run: RunData) -> Figure | None:
    """Cumulative emissions against every site alone and always on."""
    from plotly import graph_objects as go

    times, kg = curves.emissions_kg(run)
    if run.ledger.total().energy_j == 0:
        return None
    figure = go.Figure()
    colours = site_colours(run.sites)
    for site in run.sites:
        t, total = curves.baseline_kg(run, site)
        final = run.baselines_kg[site]
        name = f"{site} alone: {mass(final)}"
        figure.add_trace(
            go.Scatter(
                x=_stamps(t), y=total, mode="lines", name=name,
                line={"color": colours[site], "width": 1.8}, hovertemplate="%{y:.3g} kg",
            )
        )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=_stamps(times), y=kg, mode="lines", name=f"this run: {mass(float(kg[-1]))}",
            line={"color": INK, "width": 3.5}, fill="tozeroy", fillcolor="rgba(34,48,60,.08)",
            hovertemplate="%{y:.3g} kg",
        )
    )  # fmt: skip
    _look(figure, 380)
    figure.update_yaxes(title="emissions so far (kgCO₂)", rangemode="tozero")
    return figure


def _look(figure: Figure, height_px: int) -> None:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": MUTED}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(
        template="none", height=height_px, hovermode="closest",
        margin={"l": 62, "r": 12, "t": 34, "b": 44},
        font={"family": "system-ui, sans-serif", "color": INK, "size": 12.5},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
    )  # fmt: skip


def _shade(figure: Figure, start: float, end: float, colour: str, place: dict[str, int]) -> None:
    figure.add_vrect(
        _stamp(start), _stamp(end), fillcolor=colour, layer="below", line_width=0, **place
    )


def _stamp(t: float) -> str:
    return str(np.datetime64(round(t * 1000.0), "ms"))


def _stamps(times: curves.Array) -> NDArray[np.datetime64]:
    return np.round(times * 1000.0).astype("datetime64[ms]")
