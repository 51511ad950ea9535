"""What a Federation says about one pool of SuperNodes."""

from typing import Annotated, Literal

from pydantic import Field

from uncurtail.operator.fields import (
    EnvVar,
    IntOrPercent,
    KubeSection,
    PodTemplate,
    Resources,
    Volume,
    VolumeClaim,
    VolumeMount,
)

Text = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Keep = Literal["Retain", "Delete"]


class Images(KubeSection):
    """Images of this pool alone."""

    supernode: str | None = Field(default=None, description="Instead of supernodes.image.")
    superexec_client_app: str | None = Field(
        default=None,
        description="Of the SuperExec that runs ClientApps; isolation mode process needs it.",
    )


class Gpu(KubeSection):
    """GPUs of each SuperNode of the pool."""

    enabled: bool = False
    vendor: Literal["nvidia", "amd"] | None = None
    resource_name: str | None = Field(
        default=None, description="Instead of the vendor's usual resource."
    )
    count: int = Field(default=1, ge=1)
    mount_all: bool = Field(
        default=False,
        description="Every GPU of the node, without asking the scheduler; needs a vendor.",
    )


class Retention(KubeSection):
    """What becomes of claims that a StatefulSet made."""

    when_deleted: Keep = "Retain"
    when_scaled: Keep = "Retain"


class Disruption(KubeSection):
    """A PodDisruptionBudget: exactly one of the two."""

    min_available: IntOrPercent | None = None
    max_unavailable: IntOrPercent | None = None


class Drain(KubeSection):
    """How SuperNodes are asked to leave before they are stopped.

    A pod that has to go gets the annotation flwr.exalsius.ai/drain-requested-at, which it can read
    in /etc/flower/podinfo/annotations. It is stopped once it carries flwr.exalsius.ai/drained, or
    after timeoutSeconds.
    """

    timeout_seconds: int = Field(default=60, ge=0, description="0 stops without notice.")
    termination_grace_period_seconds: int = Field(default=60, ge=0)
    pre_stop: list[str] | None = Field(
        default=None,
        min_length=1,
        description="A command that the supernode container runs before SIGTERM.",
    )


class NodeAuth(KubeSection):
    """Key pairs that SuperNodes prove their identity with."""

    secret_name: Text = Field(
        description="A Secret with one private key for each pod (StatefulSet) or node (DaemonSet), "
        "under its name."
    )


class Pool(KubeSection):
    """SuperNodes that are alike."""

    name: str = Field(min_length=1, max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    replicas: int | None = Field(
        default=None,
        ge=0,
        description="How many SuperNodes (mode StatefulSet). Scale them between edits by the "
        "pool's SuperNodePool: what was said last counts.",
    )
    paused: bool = Field(
        default=False, description="Keep no SuperNode of this pool, whatever replicas is."
    )
    partitions: int | None = Field(
        default=None,
        ge=1,
        description="What {replicas} means in nodeConfig; replicas if not given.",
    )
    images: Images = Images()
    gpu: Gpu = Gpu()
    supernode_resources: Resources | None = None
    superexec_resources: Resources | None = None
    pod_template: PodTemplate | None = None
    extra_args: list[str] = Field(default_factory=list)
    superexec_extra_args: list[str] = Field(default_factory=list)
    env: list[EnvVar] = Field(default_factory=list)
    volumes: list[Volume] = Field(default_factory=list)
    volume_mounts: list[VolumeMount] = Field(default_factory=list)
    superexec_volume_mounts: list[VolumeMount] | None = None
    volume_claim_templates: list[VolumeClaim] = Field(default_factory=list)
    persistent_volume_claim_retention_policy: Retention | None = None
    node_config: dict[str, str] = Field(
        default_factory=dict, description="Values may hold {index}, {replicas}, {pool} and {node}."
    )
    auth: NodeAuth | None = None
    drain: Drain | None = Field(default=None, description="Instead of the Federation's.")
    pod_disruption_budget: Disruption | None = Field(
        default=None, description="At most one SuperNode away at a time if not given."
    )
