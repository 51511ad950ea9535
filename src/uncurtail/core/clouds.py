"""Where sites run, and what each kind of place has to be told: settings alone."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from uncurtail.core.section import Section

# processes: started here. exalsius: machines of a cluster there. static: somebody else starts
# them, when the run wants them.
FleetKind = Literal["processes", "exalsius", "static"]


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
