"""The Federation, `flwr.exalsius.ai/v1`: what users write, and the scale of one of its pools."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, ValidationError

from uncurtail.errors import UserError
from uncurtail.operator.fields import (
    EnvVar,
    KubeSection,
    Manifest,
    Peer,
    PodTemplate,
    Resources,
    Volume,
    VolumeClaim,
    VolumeMount,
)
from uncurtail.operator.hardening import Security
from uncurtail.operator.poolspec import Disruption, Drain, Pool, Port, Retention, Text

Mode = Literal["DaemonSet", "StatefulSet"]
Isolation = Literal["process", "subprocess"]


class ServicePorts(KubeSection):
    """Ports of the SuperLink's Service; SuperNodes dial the first."""

    grpc: Port = 9092
    server_app_io: Port = Field(default=9091, alias="serverAppIO")
    extra: Port = Field(default=9093, description="The Control API.")
    http: Port = Field(default=8000, description="Everything, from Flower 1.40 on.")


class LinkService(KubeSection):
    """The SuperLink's Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    ports: ServicePorts = ServicePorts()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Persistence(KubeSection):
    """A claim for the SuperLink's database, so that a restart forgets no run and no key."""

    size: Text = "1Gi"
    storage_class_name: str | None = None


class NodeKeys(KubeSection):
    """Public keys of SuperNodes, which the SuperLink's pod keeps registered."""

    config_map_name: Text = Field(
        description="A ConfigMap with one public key for each SuperNode, in OpenSSH form, under "
        "the name of its private key; NAME.pub will do. It is the whole list: whoever is not on "
        "it is unregistered, and Flower takes no key twice."
    )


class SuperLink(KubeSection):
    """The one SuperLink of the federation."""

    image: Text
    superexec_image: str | None = Field(
        default=None,
        description="Of the SuperExec that runs ServerApps; isolation mode process needs it.",
    )
    resources: Resources | None = None
    superexec_resources: Resources | None = None
    env: list[EnvVar] = Field(default_factory=list)
    extra_args: list[str] = Field(default_factory=list)
    superexec_extra_args: list[str] = Field(default_factory=list)
    pod_template: PodTemplate | None = None
    service: LinkService = LinkService()
    volumes: list[Volume] = Field(default_factory=list)
    volume_mounts: list[VolumeMount] = Field(default_factory=list)
    superexec_volume_mounts: list[VolumeMount] | None = None
    volume_claim_templates: list[VolumeClaim] = Field(default_factory=list)
    persistent_volume_claim_retention_policy: Retention | None = None
    persistence: Persistence | None = None
    supernode_keys: NodeKeys | None = None
    pod_disruption_budget: Disruption | None = Field(
        default=None,
        description="None if not given: one that guards a single pod blocks node drains.",
    )


class SuperNodes(KubeSection):
    """The SuperNodes, in pools of alike ones."""

    image: Text
    env: list[EnvVar] = Field(default_factory=list)
    pools: list[Pool] = Field(
        min_length=1,
        max_length=16,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    )


class Tls(KubeSection):
    """Certificates of the SuperLink; insecure must be false."""

    secret_name: Text = Field(
        description="A Secret with tls.crt, tls.key and ca.crt. The certificate must name the "
        "SuperLink's Service and 127.0.0.1."
    )
    ca_secret_name: str | None = Field(
        default=None,
        description="A Secret with ca.crt for the SuperNodes; secretName if not given.",
    )


class SecretRef(KubeSection):
    """A Secret whose key `secret` both ends share."""

    secret_name: Text


class Network(KubeSection):
    """NetworkPolicies: the SuperLink hears its SuperNodes and allowFrom, SuperNodes hear nobody."""

    enabled: bool = False
    allow_from: list[Peer] = Field(
        default_factory=list,
        description="NetworkPolicy peers that may reach the SuperLink, its Control API too.",
    )


class Probes(KubeSection):
    """Flower's own health service, asked by the kubelet."""

    enabled: bool = True
    period_seconds: int = Field(default=10, ge=1)
    failure_threshold: int = Field(default=6, ge=1)
    startup_seconds: int = Field(default=300, ge=10, description="How long a first start may take.")


class FederationSpec(KubeSection):
    """One SuperLink and its SuperNodes."""

    mode: Mode = Field(description="What each pool becomes.")
    isolation_mode: Isolation = Field(
        description="process runs apps in SuperExec containers, subprocess inside Flower's own."
    )
    version: str | None = Field(
        default=None,
        min_length=1,
        description="Flower's version, whose flags are used; the SuperLink image's tag says it if "
        "this does not.",
    )
    insecure: bool = True
    paused: bool = Field(default=False, description="Keep no SuperNode; the SuperLink stays.")
    superlink: SuperLink
    supernodes: SuperNodes
    tls: Tls | None = None
    superexec_auth: SecretRef | None = None
    drain: Drain = Drain()
    network_policy: Network = Network()
    probes: Probes = Probes()
    pod_security: Security = Field(
        default="baseline",
        description="restricted: no root, no capabilities, a read-only root file system.",
    )


class SuperNodePoolSpec(KubeSection):
    """The scale of one pool: what HorizontalPodAutoscalers, KEDA and kubectl scale."""

    federation: Text
    pool: Text
    replicas: int = Field(default=1, ge=0)
    federation_replicas: int | None = Field(
        default=None, ge=0, description="What the Federation said last; a newer word of it wins."
    )


@dataclass(frozen=True, slots=True)
class Federation:
    """A Federation as the API server holds it."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: FederationSpec

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Read one; a spec that cannot be read is a UserError that names the field."""
        meta = manifest["metadata"]
        try:
            spec = FederationSpec.model_validate(manifest.get("spec") or {})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in ("spec", *first["loc"]))
            raise UserError(f"{where}: {first['msg']}") from None
        return cls(meta["name"], meta["namespace"], meta["uid"], meta.get("generation", 1), spec)

    def drain_of(self, pool: Pool) -> Drain:
        """How this pool's SuperNodes leave."""
        return self.spec.drain if pool.drain is None else pool.drain

    def drain_timeout_s(self, pool: str) -> float:
        """How long they may take, of a pool that may not be in the spec any more."""
        found = [each for each in self.spec.supernodes.pools if each.name == pool]
        drain = self.drain_of(found[0]) if found else self.spec.drain
        return float(drain.timeout_seconds)
