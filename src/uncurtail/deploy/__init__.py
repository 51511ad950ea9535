"""A run on Kubernetes: from an experiment to what each cluster has to be told, and nothing else."""
