"""The container that keeps public keys registered at the SuperLink beside it."""

from importlib import resources

from uncurtail.operator import names
from uncurtail.operator.fields import Manifest
from uncurtail.operator.spec import FederationSpec

# Read as text: it needs Flower, and runs where Flower is. A change of it changes the template of
# the SuperLink's pod, which then starts anew.
PROGRAM = (resources.files("uncurtail.adapters") / "flower_keys.py").read_text(encoding="utf-8")
_FOLDER, _HOME = "flower-supernode-keys", "flower-keys-home"
_ENVIRONMENT = {
    "FLWR_HOME": names.HOME_DIR,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


def containers(spec: FederationSpec) -> list[Manifest]:
    """One, if there are keys to keep.

    Not an init container that goes on: Kubernetes 1.28 knows none, and the SuperLink has to be
    there first.
    """
    if spec.superlink.supernode_keys is None:
        return []
    return [
        {
            "name": "supernode-keys",
            "image": spec.superlink.image,
            "command": ["python", "-c", PROGRAM],
            "args": [
                f"--keys={names.NODE_KEYS_DIR}",
                "--superlink=127.0.0.1:8000",
                f"--root-certificates={names.TLS_DIR}/ca.crt",
            ],
            "env": [{"name": name, "value": value} for name, value in _ENVIRONMENT.items()],
            "volumeMounts": [
                {"name": "flower-ca", "mountPath": names.TLS_DIR, "readOnly": True},
                # As a folder: the kubelet keeps it up to date.
                {"name": _FOLDER, "mountPath": names.NODE_KEYS_DIR, "readOnly": True},
                {"name": _HOME, "mountPath": names.HOME_DIR},
            ],
            "resources": {},
        }
    ]


def volumes(spec: FederationSpec) -> list[Manifest]:
    """The folder, and a home of its own for Flower's client."""
    keys = spec.superlink.supernode_keys
    if keys is None:
        return []
    return [
        {"name": _FOLDER, "configMap": {"name": keys.config_map_name}},
        {"name": _HOME, "emptyDir": {}},
    ]
