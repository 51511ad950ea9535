"""What curtailed power would do for a run, before it is spent: virtual time, and the limit."""
