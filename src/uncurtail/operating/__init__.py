"""The operator at work: plans of `uncurtail.operator`, carried out at an API server."""
