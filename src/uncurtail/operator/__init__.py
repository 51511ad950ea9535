"""The Kubernetes operator: what a Federation asks for, as child objects and a plan to get there."""
