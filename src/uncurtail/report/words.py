"""A run in plain words: its headline, and one short sentence for each event worth telling."""

from collections.abc import Iterable, Mapping

from uncurtail.core import events as ev
from uncurtail.report.style import count, mass, number, percent

_STOPPED = {
    "budget": "all tokens are trained",
    "duration": "the planned duration is over",
    "emissions": "the emissions that were allowed are spent",
    "cost": "the money that was allowed is spent",
    "user": "somebody asked for it",
}


def headline(emitted_kg: float | None, baselines_kg: Mapping[str, float | None]) -> str:
    """The first thing to know: "0.41 kg CO₂: 3.1 % of solar alone, 12 % of duck alone"."""
    if emitted_kg is None:
        return "Emissions are not known"
    text = f"{mass(emitted_kg)} CO₂"
    known = sorted((kg, site) for site, kg in baselines_kg.items() if kg)
    if len(known) > 2:
        known = [known[0], known[-1]]
    shares = [f"{percent(emitted_kg / kg)} of {site} alone" for kg, site in reversed(known)]
    return f"{text}: {', '.join(shares)}" if shares else text


def possible(gap: float | None, oracle: Mapping[str, float | None]) -> str:
    """What an oracle could have done: "0.2 kg; this run emitted 34 % more"."""
    kg = oracle["emissions_kg"]
    return mass(kg) if gap is None else f"{mass(kg)}; this run emitted {more_or_less(gap)}"


def more_or_less(gap: float) -> str:
    """A relative difference in words."""
    return f"{percent(abs(gap))} {'more' if gap >= 0 else 'less'}"


def tell(event: ev.Event) -> str | None:
    """The event in words, or None for one that only a debugger wants."""
    match event:
        case ev.CoordinatorStarted():
            return _started(event)
        case ev.WindowOpened() | ev.WindowDimmed() | ev.WindowCleared() | ev.WindowClosed():
            return _window(event)
        case ev.SiteProvisioned():
            return f"{event.site}: session {event.session} is started"
        case ev.SiteReleased():
            return f"{event.site}: session {event.session} is gone ({event.cause})"
        case ev.StopRequested():
            return f"the run winds down: {_STOPPED.get(event.reason, event.reason)}"
        case ev.Trouble():
            return f"trouble with {event.source}: {event.message}"
        case ev.RunEnded():
            return f"the run ended with version {event.version} after {count(event.tokens)} tokens"
        case _:
            return _round(event)


def _window(
    event: ev.WindowOpened | ev.WindowDimmed | ev.WindowCleared | ev.WindowClosed,
) -> str:
    value = f"{number(event.intensity_g_per_kwh)} gCO₂/kWh"
    match event:
        case ev.WindowOpened():
            return f"{event.site}: window opens at {value}"
        case ev.WindowDimmed():
            return f"{event.site}: window dims at {value}, for capped power only"
        case ev.WindowCleared():
            return f"{event.site}: window clears at {value}, for full power"
        case ev.WindowClosed(intensity_g_per_kwh=None):
            return f"{event.site}: window closes, its intensity is unknown"
        case ev.WindowClosed():
            return f"{event.site}: window closes at {value}"


def _started(event: ev.CoordinatorStarted) -> str:
    if event.epoch == 1:
        return "the run starts"
    return f"coordinator {event.epoch} takes over from version {event.version}"


def _round(event: ev.Event) -> str | None:
    match event:
        case ev.UpdateRejected():
            lost = f"{event.steps} steps are trained again" if event.steps else "no step is lost"
            return f"round {event.round}: no update from {event.site} ({event.reason}); {lost}"
        case ev.RoundCommitted():
            sites = ", ".join(event.sites)
            done = count(event.tokens)
            return f"round {event.round}: version {event.version} from {sites}; {done} tokens"
        case ev.RoundSkipped():
            return f"round {event.round}: nothing to merge, the model stays as it was"
        case ev.Evaluated():
            return f"version {event.version}: validation loss {event.val_loss:.3f}"
        case _:
            return None


def story(events: Iterable[ev.Event]) -> list[tuple[float, str, str]]:
    """(simulated unix seconds, type of event, sentence) of every event worth telling."""
    told = ((event, tell(event)) for event in events)
    return [(event.t, type(event).__name__, text) for event, text in told if text is not None]
