"""Learning rate, momentum and weight decay, as pure functions of the tokens trained so far.

The tokens are the run's, of all its sites: a schedule is the same whatever their number.
"""

from dataclasses import dataclass

from uncurtail.lm.sections import ScheduleSection

__all__ = [
    "Rates",
    "ScheduleSection",
    "decay_scale",
    "lr_scale",
    "muon_momentum",
    "progress",
    "rates",
]

MOMENTUM_START = 0.85  # Muon's momentum at token 0: a young average should forget quickly


@dataclass(frozen=True, slots=True)
class Rates:
    """What a step is taken with: two multipliers, and Muon's momentum."""

    lr_scale: float
    momentum: float
    decay_scale: float


def rates(
    section: ScheduleSection, tokens: int, budget_tokens: int, step_tokens: int, momentum: float
) -> Rates:
    """What to take a step with, `tokens` into the run; `step_tokens` are those of one site's step.

    `momentum` is Muon's in the end.
    """
    return Rates(
        lr_scale(section, tokens, budget_tokens, step_tokens),
        muon_momentum(section, tokens, budget_tokens, momentum),
        decay_scale(section, tokens, budget_tokens),
    )


def progress(tokens: int, budget_tokens: int) -> float:
    """Tokens trained over the budget, clamped to [0, 1]; an empty budget is spent."""
    if budget_tokens <= 0:
        return 1.0
    return min(1.0, max(0.0, tokens / budget_tokens))


def lr_scale(section: ScheduleSection, tokens: int, budget_tokens: int, step_tokens: int) -> float:
    """What to multiply every learning rate with at this token count: in [0, 1], never negative.

    The warm-up reckons with the end of the step, or the first would be taken with nothing. Of one
    site's step: so the rate depends on the run's tokens and not on how many sites train.
    Beyond the budget it stays at `final_lr_share`.
    """
    done, then = (progress(t, budget_tokens) for t in (tokens, tokens + step_tokens))
    up = 1.0 if section.warmup_share == 0 else min(1.0, then / section.warmup_share)
    left = 1.0 if section.warmdown_share == 0 else min(1.0, (1.0 - done) / section.warmdown_share)
    down = section.final_lr_share + (1.0 - section.final_lr_share) * left
    return min(1.0, max(0.0, min(up, down)))


def muon_momentum(
    section: ScheduleSection, tokens: int, budget_tokens: int, final: float = 0.95
) -> float:
    """Muon's momentum: from 0.85 (or `final`, if lower) to `final` over the ramp, then constant."""
    if section.momentum_ramp_share == 0:
        return final
    ramp = min(1.0, progress(tokens, budget_tokens) / section.momentum_ramp_share)
    start = min(MOMENTUM_START, final)
    return start + (final - start) * ramp


def decay_scale(section: ScheduleSection, tokens: int, budget_tokens: int) -> float:
    """What to multiply weight decay with: from 1 to `final_decay_share` at the end of the budget.

    The weights have settled by then, and decay only pulls at them (as nanochat has it).
    """
    left = 1.0 - progress(tokens, budget_tokens)
    return min(1.0, section.final_decay_share + (1.0 - section.final_decay_share) * left)
