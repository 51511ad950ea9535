"""The argument parsers of the installed Flower, and of the program that runs beside it."""

import argparse
import warnings
from collections.abc import Callable

with warnings.catch_warnings():
    # typer, which Flower imports, reads a name that its newest click calls old.
    warnings.simplefilter("ignore", DeprecationWarning)
    from flwr.common.config import parse_config_args
    from flwr.supercore.cli.flower_superexec import _parse_args
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    from uncurtail.adapters.flower_keys import parser as _parse_args_supernode_keys

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "superlink": _parse_args_run_superlink,
    "supernode": _parse_args_run_supernode,
    "superexec-serverapp": _parse_args,
    "superexec-clientapp": _parse_args,
    "supernode-keys": _parse_args_supernode_keys,
}

__all__ = ["PARSERS", "parse_config_args"]
