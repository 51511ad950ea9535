"""What a container is started with: its command, and its environment from wherever it comes."""

import base64
import re
from dataclasses import dataclass

from tests.cluster.api import Api
from tests.cluster.objects import Json, dig
from tests.cluster.refusals import ApiError


class NotYetError(Exception):
    """A container cannot start, as something that it needs is missing; it is tried again."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Launch:
    """How a process is started."""

    words: tuple[str, ...]
    environment: dict[str, str]
    folder: str


def field_of(pod: Json, path: str) -> str:
    """A field of the downward API; labels and annotations also by key."""
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = pod["metadata"].get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    value = dig(pod, "status.podIP" if path == "status.podIPs" else path)
    return "" if value is None else str(value)


def data_of(api: Api, plural: str, namespace: str, name: str) -> dict[str, bytes] | None:
    """The content of a ConfigMap or Secret; None where there is none."""
    try:
        thing = api.get(api.resources.by_plural(plural), namespace, name)
    except ApiError:
        return None
    texts = thing.get("stringData" if plural == "secrets" else "data") or {}
    encoded = thing.get("data" if plural == "secrets" else "binaryData") or {}
    return {
        **{key: base64.b64decode(value) for key, value in encoded.items()},
        **{key: value.encode() for key, value in texts.items()},
    }


def _missing(what: str) -> NotYetError:
    return NotYetError("CreateContainerConfigError", f"{what} not found")


def _value_from(api: Api, pod: Json, container: Json, source: Json) -> str | None:
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
        return str((dig(container, f"resources.{kind}") or {}).get(name, 0))
    key, plural = next(
        (source[key], plural)
        for key, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps"))
        if key in source
    )
    data = data_of(api, plural, pod["metadata"]["namespace"], key["name"])
    if data is None or key["key"] not in data:
        if key.get("optional"):
            return None
        raise _missing(f"{plural} {key['name']}, key {key['key']}")
    return data[key["key"]].decode()


def _from_whole(api: Api, pod: Json, sources: list[Json]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in sources:
        for key, plural in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
            if key in source:
                name = source[key]["name"]
                data = data_of(api, plural, pod["metadata"]["namespace"], name)
                if data is None and not source[key].get("optional"):
                    raise _missing(f"{plural} {name}")
                prefix = source.get("prefix", "")
                found |= {f"{prefix}{k}": v.decode() for k, v in (data or {}).items()}
    return found


def expanded(text: str, known: dict[str, str]) -> str:
    """`$(NAME)` replaced where NAME is known; `$$(NAME)` is how to write it literally."""

    def replace(found: re.Match[str]) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        return known.get(found[1], found[0])

    return re.sub(r"\$?\$\(([-._A-Za-z0-9]+)\)", replace, text)


def links(api: Api, namespace: str) -> dict[str, str]:
    """The Services of a namespace, as variables that every container gets."""
    found = {}
    for service in api.list("services", namespace):
        ports, address = service["spec"].get("ports") or [], service["spec"].get("clusterIP")
        if ports and address not in (None, "None"):
            name = service["metadata"]["name"].upper().replace("-", "_")
            found[f"{name}_SERVICE_HOST"] = address
            found[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
    return found


def launch(api: Api, pod: Json, container: Json, image: "Image", cluster: dict[str, str]) -> Launch:
    """Everything that is needed to start a container, or NotYetError."""
    known = {**image.environment, **cluster}
    if pod["spec"].get("enableServiceLinks", True):
        known |= links(api, pod["metadata"]["namespace"])
    known |= _from_whole(api, pod, container.get("envFrom") or [])
    for variable in container.get("env") or []:
        if "valueFrom" in variable:
            value = _value_from(api, pod, container, variable["valueFrom"])
            if value is not None:
                known[variable["name"]] = value
        else:
            known[variable["name"]] = expanded(variable.get("value", ""), known)
    command = container.get("command") or image.entrypoint(container["image"])
    if not command:
        raise NotYetError("CreateContainerError", f"no command specified for {container['name']}")
    words = [expanded(word, known) for word in [*command, *(container.get("args") or [])]]
    return Launch(tuple(words), known, container.get("workingDir", "/"))


@dataclass(frozen=True, slots=True)
class Image:
    """The one image there is: this machine's files, with entry points for names of images."""

    environment: dict[str, str]
    entrypoints: dict[str, list[str]]

    def entrypoint(self, image: str) -> list[str]:
        name = image.partition("@")[0].partition(":")[0]
        return self.entrypoints.get(name, [])
