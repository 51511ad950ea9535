"""The base of every configuration section: frozen, and an unknown key is an error."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Section(BaseModel):
    """One table of an experiment file, owned by the module that reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def place(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ValueError: It is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("is no address: write HOST:PORT")
    return host, int(port)


def _is_a_place(address: str) -> str:
    place(address)
    return address


Place = Annotated[str, AfterValidator(_is_a_place)]
