"""Train language models on renewable power that would otherwise be thrown away."""

__version__ = "0.1.0"
