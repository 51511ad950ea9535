"""The settings of merging; apart from the code that reads them to be free of torch."""

from typing import Literal

from pydantic import Field

from uncurtail.core.section import Section


class OuterSection(Section):
    """The outer optimizer: "plain" takes the mean delta as it is; lr and momentum are nesterov's.

    0.7 and 0.6 were the best of three at small scale; plain was better still (docs, calibration).
    """

    kind: Literal["plain", "nesterov"] = "plain"
    lr: float = Field(default=0.7, gt=0)
    momentum: float = Field(default=0.6, ge=0, lt=1)
