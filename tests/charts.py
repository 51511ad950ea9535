"""The Helm charts as helm itself fills them in."""

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.binaries import find
from tests.cluster.objects import Json

CHARTS = Path(__file__).parents[1] / "deploy/helm"
OPERATOR = CHARTS / "uncurtail-operator"
RUN = CHARTS / "uncurtail"


def helm(*words: str, sent: str | None = None, kubeconfig: Path | None = None) -> str:
    """Run it in a home of its own; what it printed. `sent` is its standard input."""
    program = find("helm")
    if program is None:
        pytest.skip("helm is not installed")
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [program, *words],
            input=sent,
            stdin=None if sent is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=170,
            env={"HOME": home, "KUBECONFIG": str(kubeconfig or os.devnull)},
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(chart: Path, name: str, namespace: str, **values: object) -> list[Json]:
    """The documents that a release would be made of."""
    return list(yaml.safe_load_all(_template(chart, name, namespace, json.dumps(values))))


@functools.lru_cache
def _template(chart: Path, name: str, namespace: str, values: str) -> str:
    return helm("template", name, str(chart), "-n", namespace, "-f", "-", sent=values)
