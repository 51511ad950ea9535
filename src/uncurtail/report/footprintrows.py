"""The footprint in words: a line for the terminal, rows for the page."""

from typing import Any

from uncurtail.report.style import mass, number, percent


def footprint_rows(footprint: dict[str, Any] | None) -> list[tuple[str, str]]:
    """(what, how much) of `summary["footprint"]`; what no signal speaks of is left out."""
    if footprint is None:
        return []
    told = [("at the meter", _meter(footprint)), *_signals(footprint)]
    made, net = footprint["embodied"], footprint["network"]
    reserved = f"{mass(made['reserved_kg'])} for all that were reserved"
    told.append(("making the GPUs", f"{mass(made['used_kg'])} for the hours used, {reserved}"))
    if net is not None:
        moved = f"{number(net['gb'], 'GB')}, {number(net['kwh'], 'kWh')}, {mass(net['kg'])}"
        told.append(("network (estimated)", moved))
    sci = footprint["sci_kg_per_million_tokens"]
    if sci["used"] is not None:
        texts = f"{mass(sci['used'])} by hours used, {mass(sci['reserved'])} by hours reserved"
        told.append(("SCI, per million tokens", texts))
    told += _otherwise(footprint["counterfactuals"])
    told += [("not counted", note) for note in footprint["notes"]]
    return told


def footprint_line(footprint: dict[str, Any] | None) -> str:
    """The least to know: "1.2 kg per million tokens (SCI), with 0.3 to 0.9 kg for its GPUs"."""
    if footprint is None:
        return "unknown"
    made = footprint["embodied"]
    gpus = f"{mass(made['used_kg'])} to {mass(made['reserved_kg'])} for making its GPUs"
    per_million = footprint["sci_kg_per_million_tokens"]["used"]
    sci = "" if per_million is None else f"{mass(per_million)} per million tokens (SCI), with "
    return f"{sci}{gpus}"


def _meter(footprint: dict[str, Any]) -> str:
    total = footprint["total"]
    energy = number(total["energy_kwh"], "kWh")
    shares = sorted({f"{value:g}" for value in footprint["pue"].values()})
    measured = total["measured_share"] or 0.0
    power = f"{percent(measured)} of it measured" if measured else "by declared power"
    return f"{energy}, PUE {' to '.join([shares[0], *shares[1:][-1:]])}, {power}"


def _signals(footprint: dict[str, Any]) -> list[tuple[str, str]]:
    total = footprint["total"]
    told = []
    for basis, name in (("marginal", "consequential"), ("average", "attributional")):
        if total[f"{basis}_kg"] is not None:
            known = _known(total[f"{basis}_known_share"])
            told.append((f"{basis} ({name})", f"{mass(total[f'{basis}_kg'])}{known}"))
    if total["cost"] is not None:
        cost = number(total["cost"], footprint["currency"])
        told.append(("electricity", f"{cost}{_known(total['price_known_share'])}"))
    return told


def _known(share: float) -> str:
    unknown = 1.0 - share
    return "" if unknown < 1e-9 else f", and {percent(unknown)} of the energy unknown"


def _otherwise(other: dict[str, Any]) -> list[tuple[str, str]]:
    told = []
    if other["all_on_kg"] is not None:
        told.append(("all sites always on", mass(other["all_on_kg"])))
    now = other["run_now"]
    if now is not None and now["kg"] is not None:
        told.append(("not waiting at all", f"{mass(now['kg'])} at {now['site']}"))
    return told
