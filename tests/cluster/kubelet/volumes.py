"""The volumes of a pod as folders on this machine, to be mounted where its containers want them."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.api import Api
from tests.cluster.kubelet.environment import NotYetError, data_of, expanded, field_of
from tests.cluster.objects import Json, dig

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of this machine, and where a container sees it."""

    source: Path
    target: str
    is_read_only: bool


@dataclass
class Volumes:
    """The volumes of one pod; claims live in `claims`, beyond it."""

    api: Api
    pod: Json
    folder: Path
    claims: Path
    ca: Path
    token: str

    def prepare(self) -> None:
        """Make all volumes, or raise NotYetError for one whose source is missing."""
        for volume in self.pod["spec"].get("volumes") or []:
            self._make(volume)
        self._write(self.folder / "account", self._account())

    def refresh(self) -> None:
        """Bring ConfigMaps and Secrets as they are now; one that is gone stays as it was."""
        for volume in self.pod["spec"].get("volumes") or []:
            if "configMap" in volume or "secret" in volume:
                with contextlib.suppress(NotYetError):
                    self._write(self.place(volume), self._content(volume))

    def _account(self) -> dict[str, bytes]:
        return {
            "token": self.token.encode(),
            "ca.crt": self.ca.read_bytes(),
            "namespace": self.pod["metadata"]["namespace"].encode(),
        }

    def place(self, volume: Json) -> Path:
        namespace = str(self.pod["metadata"]["namespace"])
        if "persistentVolumeClaim" in volume:
            return self.claims / namespace / str(volume["persistentVolumeClaim"]["claimName"])
        if "hostPath" in volume:
            return Path(str(volume["hostPath"]["path"]))
        return self.folder / str(volume["name"])

    def _make(self, volume: Json) -> None:
        place = self.place(volume)
        if "hostPath" in volume:
            if not place.exists():
                raise NotYetError("ContainerCreating", f"hostPath {place} is not there")
        elif "persistentVolumeClaim" in volume:
            self._check_claim(volume["persistentVolumeClaim"]["claimName"])
            place.mkdir(parents=True, exist_ok=True)
        elif "emptyDir" in volume:
            place.mkdir(parents=True, exist_ok=True)
        else:
            self._write(place, self._content(volume))

    def _check_claim(self, name: str) -> None:
        claims = self.api.list("persistentvolumeclaims", self.pod["metadata"]["namespace"])
        phases = [dig(c, "status.phase") for c in claims if c["metadata"]["name"] == name]
        if phases != ["Bound"]:
            raise NotYetError("ContainerCreating", f"claim {name} is not bound")

    def _content(self, source: Json) -> dict[str, bytes]:
        if "secret" in source:
            secret = source["secret"]
            return self._items("secrets", secret.get("secretName") or secret["name"], secret)
        if "configMap" in source:
            return self._items("configmaps", source["configMap"]["name"], source["configMap"])
        if "downwardAPI" in source:
            return {
                item["path"]: field_of(self.pod, item["fieldRef"]["fieldPath"]).encode()
                for item in source["downwardAPI"].get("items") or []
            }
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: self.token.encode()}
        if "projected" in source:
            content: dict[str, bytes] = {}
            for part in source["projected"].get("sources") or []:
                content |= self._content(part)
            return content
        raise NotYetError("ContainerCreating", f"volumes of this kind are unknown: {source}")

    def _items(self, plural: str, name: str, source: Json) -> dict[str, bytes]:
        data = data_of(self.api, plural, self.pod["metadata"]["namespace"], name)
        if data is None:
            if source.get("optional"):
                return {}
            raise NotYetError("ContainerCreating", f"{plural} {name} not found")
        items = source.get("items")
        if items is None:
            return data
        missing = [item["key"] for item in items if item["key"] not in data]
        if missing:
            raise NotYetError("ContainerCreating", f"{plural} {name} has no {missing[0]}")
        return {item["path"]: data[item["key"]] for item in items}

    def _write(self, place: Path, content: dict[str, bytes]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            path = place / name
            if path.exists() and path.read_bytes() == data:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # A new file in its place: nobody reads half of one, and a subPath keeps the old one.
            new = path.with_name(f"..{path.name}")
            new.touch(mode=0o600)
            new.write_bytes(data)
            new.replace(path)
        for path in place.iterdir():
            if path.is_file() and path.name not in content:
                path.unlink()

    def mounts(self, container: Json, environment: dict[str, str]) -> list[Mount]:
        """What a container has mounted, the token of its account included."""
        by_name = {v["name"]: v for v in self.pod["spec"].get("volumes") or []}
        found = []
        for mount in container.get("volumeMounts") or []:
            volume = by_name[mount["name"]]
            source = self.place(volume)
            part = mount.get("subPath") or expanded(mount.get("subPathExpr", ""), environment)
            if part:
                source = source / part
                if not source.exists():
                    source.mkdir(parents=True)
            is_fixed = not {"emptyDir", "persistentVolumeClaim", "hostPath"} & volume.keys()
            read_only = bool(mount.get("readOnly")) or is_fixed
            found.append(Mount(source, mount["mountPath"], read_only))
        has_account = any(mount.target == ACCOUNT for mount in found)
        if self.pod["spec"].get("automountServiceAccountToken", True) and not has_account:
            found.append(Mount(self.folder / "account", ACCOUNT, True))
        return found

    def remove(self) -> None:
        """Take away what belongs to the pod alone."""
        shutil.rmtree(self.folder, ignore_errors=True)
