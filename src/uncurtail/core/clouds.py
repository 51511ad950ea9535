"""Where sites run, and what each kind of place has to be told: settings alone."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from uncurtail.core.section import Section

# processes: started here. exalsius: machines of a cluster there. kubernetes: pods of a cluster.
# static: somebody else starts them, when the run wants them.
FleetKind = Literal["processes", "exalsius", "kubernetes", "static"]


class ExalsiusSection(Section):
    """The Exalsius API. UNCURTAIL_EXALSIUS_TOKEN(_FILE) holds the access token."""

    url: str = "https://api.exalsius.ai/v1"
    cluster_id: str | None = None  # of sites that do not name their own

    @field_validator("url")
    @classmethod
    def _the_token_travels_sealed(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ValueError("must not hold a password: it would be written into the run folder")
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and local)
        ):
            raise ValueError("is no address for a token: write https://HOST/v1")
        return url.rstrip("/")


class ExalsiusSite(Section):
    """A site's machine: one of the node pool, or a new one of an offer for each session.

    A node that is named here is this run's alone: it joins the cluster and leaves it.
    """

    cluster_id: str | None = None  # unset: fleet.exalsius.cluster_id
    node_id: str | None = Field(default=None, min_length=1)
    offer_id: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_machine(self) -> Self:
        if self.node_id is not None and self.offer_id is not None:
            raise ValueError("name node_id or offer_id, not both")
        return self


class KubernetesSection(Section):
    """Of sites that do not name their own. Credentials are the kubeconfig's, or the pod's own."""

    context: str | None = Field(default=None, min_length=1)  # unset: the current one
    namespace: str | None = Field(default=None, min_length=1)  # unset: the context's


class KubernetesSite(Section):
    """A site's pods: a pool of a Federation, which its operator runs, or pods of an image.

    A pool that is named here is this run's alone: its one replica is the site's session.
    """

    context: str | None = Field(default=None, min_length=1)  # unset: fleet.kubernetes.context
    namespace: str | None = Field(default=None, min_length=1)
    federation: str | None = Field(default=None, min_length=1)
    pool: str | None = Field(default=None, min_length=1)
    image: str | None = Field(default=None, min_length=1)
    # Of pods of an image; a pool's are in its Federation.
    gpus: int = Field(default=0, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = Field(default_factory=dict)
    service_account: str | None = None
    # A pool's is its Federation's, where deploy render writes it: one that asks asks for all.
    pod_security: Literal["baseline", "restricted"] = "baseline"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.federation is None) != (self.pool is None):
            raise ValueError("federation and pool belong together: name both")
        if self.federation is not None and self.image is not None:
            raise ValueError("name federation and pool, or image, not both")
        return self
