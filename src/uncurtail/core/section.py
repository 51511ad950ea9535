"""The base of every configuration section: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table of an experiment file, owned by the module that reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
