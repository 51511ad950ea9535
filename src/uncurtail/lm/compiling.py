"""Whether a step is compiled: where it pays, and never at the price of the step itself."""

import logging
import os
import shutil
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Compile = Literal["never", "auto", "always"]

log = logging.getLogger("uncurtail.train")


def c_compiler() -> str | None:
    """The C compiler that torch would find here."""
    found = map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))
    return next(filter(None, found), None)


def compiled(loss: Loss, mode: Compile, device: torch.device) -> Loss:
    """The loss by `torch.compile`, or as it is.

    "auto" compiles on GPUs, if there is a C compiler, which Triton builds its launchers with; what
    torch then fails to compile it computes as it is, and logs why. "always" raises what torch
    raises. On a CPU it takes some 600 steps to pay.
    """
    if mode == "never" or (mode == "auto" and device.type != "cuda"):
        return loss
    if mode == "auto":
        if c_compiler() is None:
            log.warning("no C compiler: steps are not compiled, and slower (install gcc)")
            return loss
        torch._dynamo.config.suppress_errors = True
    compiled_loss: Loss = torch.compile(loss, dynamic=False)
    return compiled_loss
