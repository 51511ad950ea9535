"""Train language models on renewable power that would otherwise be thrown away."""

import os

__version__ = "0.1.0"

# Read once, when torch brings OpenMP in: how often a thread looks before it sleeps, where it waits
# for others. OpenMP's own 300,000 are milliseconds for which it keeps from a core those it waits
# for: with three such processes and another on two cores, an evaluation took over 60 s instead of
# 6. Our bf16 step, with the machine to itself, is as fast with either (benchmarks/README.md).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
