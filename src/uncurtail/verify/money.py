"""Cost adds up: each stretch costs what was read or declared, and the ledger is their sum."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from uncurtail.core.events import iso
from uncurtail.core.ledger import J_PER_KWH, Ledger
from uncurtail.core.pricing import price_at
from uncurtail.core.signals import Reading, in_force
from uncurtail.verify.evidence import Evidence, Finding, agree, judged

# As for emissions: series hold ten digits and whole milliseconds, ledgers what was measured.
RELATIVE = 1e-4
ABSOLUTE_EUR = 1e-5
ABSOLUTE_J = 10.0
DIGITS_RELATIVE = 1e-5


def cost_adds_up(run: Evidence) -> Finding:
    """Prices in the power series are those in force, and the newest ledger's cost their sum."""
    if not run.knows_prices:
        return Finding(None, "power.csv is from before prices were recorded")
    readings = run.prices
    rows = [row.segment for site in run.power.values() for row in site]
    if not any(readings.values()) and all(row.price_eur_per_kwh is None for row in rows):
        return Finding(None, "no price was declared or asked for")
    problems = [*_price_problems(run, readings), *_ledger_problems(run)]
    cost = sum(tally.cost_eur for tally in run.ledger.tallies.values())
    return judged(problems, f"{cost:.4f} EUR until the last commit")


def _price_problems(run: Evidence, readings: dict[str, list[Reading]]) -> Iterator[str]:
    """Rows whose price is neither what was read nor, for want of that, what was declared."""
    stale_s = run.setup.price_stale_after_s
    for site, rows in run.power.items():
        told = readings.get(site, [])
        declared = run.setup.sites[site].price_eur_per_kwh if site in run.setup.sites else None
        for segment in (row.segment for row in rows):
            reading = in_force(told, segment.start)
            expected = price_at(reading, segment.start, stale_s, declared).eur_per_kwh
            price = segment.price_eur_per_kwh
            if not agree(price, expected, relative=DIGITS_RELATIVE, absolute=1e-9):
                yield (
                    f"power.csv of {site} at {iso(segment.start)} has price {price}, "
                    f"prices.csv and resolved.json {expected}"
                )
            first = bisect_right(told, segment.start, key=_time)
            last = bisect_left(told, segment.end, key=_time)
            if any(_differs(row, reading) for row in told[first:last]):
                yield f"power.csv of {site} at {iso(segment.start)} spans a change of its price"


def _differs(reading: Reading, before: Reading | None) -> bool:
    return before is None or reading.value != before.value


def _ledger_problems(run: Evidence) -> Iterator[str]:
    ledger, again = run.ledger, Ledger(0.0)
    for rows in run.power.values():
        for row in rows:
            segment = row.segment
            until = min(segment.end, run.newest.t)
            if until > segment.start:
                again.add(segment.with_power(row.grid_power_w, until))
    for site in sorted({site for site, _ in (*ledger.tallies, *again.tallies)}):
        told, found = ledger.total(site=site), again.total(site=site)
        slack_eur = ABSOLUTE_EUR + ABSOLUTE_J / J_PER_KWH * _highest(run.prices.get(site, []))
        for what, absolute in (("cost_eur", slack_eur), ("uncosted_j", ABSOLUTE_J)):
            left, right = getattr(told, what), getattr(found, what)
            if not agree(left, right, relative=RELATIVE, absolute=absolute):
                yield (
                    f"{site}: {what} {left:.6g} in the ledger of version {run.newest.version}, "
                    f"{right:.6g} from power and prices"
                )


def _highest(readings: Sequence[Reading]) -> float:
    return max((abs(reading.value or 0.0) for reading in readings), default=0.0)


def _time(reading: Reading) -> float:
    return reading.t
