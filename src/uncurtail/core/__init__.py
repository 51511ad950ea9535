"""Decisions, in the order the data flows: pure functions of values and time."""
