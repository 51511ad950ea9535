"""Whether a step is compiled: where it pays, and never at the price of the step itself."""

import logging
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from uncurtail.lm.sections import TrainSection

Loss = Callable[[Tensor, Tensor], Tensor]

log = logging.getLogger("uncurtail.train")


def c_compiler() -> str | None:
    """The C compiler that torch would find here."""
    found = map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))
    return next(filter(None, found), None)


def compiled(loss: Loss, train: TrainSection, device: torch.device) -> Loss:
    """The loss by `torch.compile`, or as it is.

    "auto" compiles on GPUs, if there is a C compiler, which Triton builds its launchers with; what
    torch then fails to compile, anywhere in this process, it computes as it is, and logs why.
    "always" raises what torch raises. On a CPU it pays after some 600 steps (5.2M parameters).
    """
    if train.compile == "never":
        return loss
    if train.compile == "auto":
        # a compiler may choose other kernels at each start, and with them the last bits
        if device.type != "cuda" or train.deterministic:
            return loss
        if c_compiler() is None:
            log.warning("no C compiler: steps are not compiled, and slower (install gcc)")
            return loss
        torch._dynamo.config.suppress_errors = True
    compiled_loss: Loss = torch.compile(loss, dynamic=False)
    return compiled_loss
