"""What a container needs to use GPUs: asked from the scheduler, or every one of the node."""

from dataclasses import dataclass, field

from uncurtail.operator.fields import Manifest
from uncurtail.operator.poolspec import Gpu

_RESOURCE = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}


@dataclass(frozen=True, slots=True)
class Gpus:
    """Additions to the pod and to the containers that compute."""

    resources: Manifest | None = None
    env: tuple[Manifest, ...] = ()
    volumes: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()
    runtime_class: str | None = None
    security: Manifest = field(default_factory=dict)


def gpus_of(gpu: Gpu) -> Gpus:
    """By resource if enabled; mountAll takes precedence and needs no resource."""
    if gpu.mount_all:
        return _all_of_nvidia() if gpu.vendor == "nvidia" else _all_of_amd()
    if not gpu.enabled:
        return Gpus()
    resource = gpu.resource_name or _RESOURCE[gpu.vendor or "nvidia"]
    count = {resource: str(gpu.count)}
    return Gpus(resources={"limits": count, "requests": count})


def _all_of_nvidia() -> Gpus:
    env = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}
    return Gpus(env=(env,), runtime_class="nvidia")


def _all_of_amd() -> Gpus:
    paths = {"flower-kfd": ("/dev/kfd", "CharDevice"), "flower-dri": ("/dev/dri", "Directory")}
    return Gpus(
        env=({"name": "ROCR_VISIBLE_DEVICES", "value": "all"},),
        volumes=tuple(
            {"name": name, "hostPath": {"path": path, "type": kind}}
            for name, (path, kind) in paths.items()
        ),
        mounts=tuple({"name": name, "mountPath": path} for name, (path, _) in paths.items()),
        # Devices of the host can be opened by a privileged container alone.
        security={"securityContext": {"privileged": True}},
    )
