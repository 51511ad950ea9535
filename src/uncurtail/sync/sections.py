"""The settings of merging; apart from the code that reads them to be free of torch."""

from typing import Literal

from pydantic import Field

from uncurtail.core.section import Section


class OuterSection(Section):
    """The outer optimizer: "plain" takes the mean delta as it is; lr and momentum are nesterov's.

    0.7 and 0.6 are MuLoCo's at 30 inner steps (2505.23725); they were not calibrated here.
    """

    kind: Literal["plain", "nesterov"] = "plain"
    lr: float = Field(default=0.7, gt=0)
    momentum: float = Field(default=0.6, ge=0, lt=1)
    # An update that moves the model by more times its own norm is a broken site's. The demo's 450
    # steps from nothing move it by 7 times: the bound is far from any that trains.
    max_delta_ratio: float = Field(default=100.0, gt=0)
