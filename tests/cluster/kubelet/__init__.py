"""Pods as processes of this machine, each in namespaces of its own."""
