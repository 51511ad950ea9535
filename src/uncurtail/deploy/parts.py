"""What the documents of a deployment have in common: names, labels, places, hardening."""

from dataclasses import dataclass

from uncurtail.operator.fields import Manifest
from uncurtail.operator.hardening import UID, container_context, pod_context

RUNS = "/runs"  # on the claim: run folders, and files that an experiment names
CACHE = "/cache"  # on the claim, too: prepared data
EXPERIMENT_DIR = "/etc/uncurtail"
EXPERIMENT_FILE = "experiment.toml"
KUBECONFIG_DIR = "/etc/uncurtail-clusters"
KUBECONFIG_FILE = "config"


@dataclass(frozen=True, slots=True)
class Name:
    """What everything of one deployment is called, and where it is."""

    of: str
    namespace: str

    @property
    def gate(self) -> str:
        """The Service in front of the gate."""
        return f"{self.of}-gate"

    @property
    def credentials(self) -> str:
        """The Secret with environment variables, which a person makes."""
        return f"{self.of}-credentials"

    @property
    def kubeconfig(self) -> str:
        """The Secret with the ways into other clusters, which a person makes."""
        return f"{self.of}-kubeconfig"

    def labels(self, component: str) -> dict[str, str]:
        """As Kubernetes recommends them."""
        return {
            "app.kubernetes.io/name": "uncurtail",
            "app.kubernetes.io/instance": self.of,
            "app.kubernetes.io/component": component,
        }

    def meta(self, component: str, name: str | None = None) -> Manifest:
        """The metadata of an object that belongs to the deployment."""
        return {
            "name": name or self.of,
            "namespace": self.namespace,
            "labels": self.labels(component),
        }


def pod_security(low_port: bool) -> Manifest:
    """What Kubernetes' restricted profile asks of a pod; files of the claim are our user's."""
    context = pod_context("restricted", owns_volumes=True) | {
        # Whoever else writes to the claim must be able to be the same.
        "runAsGroup": UID,
        # Not at each start: it would open private keys to the group, file by file.
        "fsGroupChangePolicy": "OnRootMismatch",
    }
    if low_port:
        # One of the safe ones: without it only root may listen below 1024.
        context["sysctls"] = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    return context


def container_security() -> Manifest:
    """What the restricted profile asks of a container, and a root file system that stays."""
    return container_context("restricted")
