"""What pods may do, whoever makes them: as little as everything can live with, or restricted."""

from typing import Literal

from uncurtail.operator.fields import Manifest

# The user of Flower's own images, as Flower documents it, and of deploy/Dockerfile.
UID = 49999
Security = Literal["baseline", "restricted"]


def pod_context(security: Security, *, owns_volumes: bool = False) -> Manifest:
    """A pod's securityContext; `owns_volumes`: of claims, which our user must be able to write."""
    context: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    if security == "restricted":
        context |= {"runAsNonRoot": True, "runAsUser": UID}
    if owns_volumes or security == "restricted":
        context["fsGroup"] = UID
    return context


def container_context(security: Security, *, privileged: bool = False) -> Manifest:
    """A container's securityContext; restricted ones need volumes for all that they write."""
    # The API server refuses the pair of privileged and this.
    context: Manifest = {} if privileged else {"allowPrivilegeEscalation": False}
    if security == "restricted":
        context |= {"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    return context
