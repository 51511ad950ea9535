"""What stands behind a Service, which claims are bound, and how many pods may be missing."""

from tests.cluster.api import Api
from tests.cluster.controllers import pods
from tests.cluster.objects import Json, dig, is_ending, owner_reference
from tests.cluster.refusals import ApiError
from tests.cluster.selectors import by_label_selector
from tests.cluster.subresources import least_healthy


class EndpointLists:
    """Writes the addresses of the pods behind each Service, ready ones and others apart."""

    def step(self, api: Api) -> None:
        for service in api.list("services"):
            if service["spec"].get("selector") and not is_ending(service):
                self._write(api, service)

    def _write(self, api: Api, service: Json) -> None:
        namespace, name = (service["metadata"][key] for key in ("namespace", "name"))
        wanted = by_label_selector({"matchLabels": service["spec"]["selector"]})
        subsets = []
        for pod in api.list("pods", namespace):
            ip = dig(pod, "status.podIP")
            if wanted(pod) and ip and not pods.has_ended(pod):
                subsets.append(_subset(service, pod, ip))
        thing = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "ownerReferences": [owner_reference(service)],
            },
            "subsets": subsets,
        }
        resource = api.resources.by_plural("endpoints")
        try:
            found = api.get(resource, namespace, name)
        except ApiError:
            api.create(resource, namespace, thing)
        else:
            api.change(found, lambda e: e.update(subsets=subsets))


def _subset(service: Json, pod: Json, ip: str) -> Json:
    ports = []
    for port in service["spec"].get("ports") or []:
        number = port["targetPort"]
        if isinstance(number, str):
            number = _named_port(pod, number)
        entry = {"port": number, "protocol": port["protocol"]}
        if port.get("name"):
            entry["name"] = port["name"]
        if number is not None:
            ports.append(entry)
    target = {"kind": "Pod", **{k: pod["metadata"][k] for k in ("name", "namespace", "uid")}}
    address = {"ip": ip, "targetRef": target}
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        address["hostname"] = pod["spec"]["hostname"]
    is_served = pods.is_up(pod) or service["spec"].get("publishNotReadyAddresses", False)
    return {"addresses" if is_served else "notReadyAddresses": [address], "ports": ports}


def _named_port(pod: Json, name: str) -> int | None:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or []:
            if port.get("name") == name:
                return int(port["containerPort"])
    return None


class Claims:
    """Binds every claim: there is always a disk."""

    def step(self, api: Api) -> None:
        for claim in api.list("persistentvolumeclaims"):
            if dig(claim, "status.phase") != "Bound":
                wanted = dig(claim, "spec.resources.requests") or {}
                pods.write_status(api, claim, {"phase": "Bound", "capacity": wanted})


class Budgets:
    """Writes how many disruptions each PodDisruptionBudget allows."""

    def step(self, api: Api) -> None:
        for budget in api.list("poddisruptionbudgets"):
            selector = budget["spec"].get("selector")
            if selector is None:
                continue
            chosen = by_label_selector(selector)
            peers = [p for p in api.list("pods", budget["metadata"]["namespace"]) if chosen(p)]
            healthy = sum(pods.is_up(pod) for pod in peers)
            least = least_healthy(budget["spec"], len(peers))
            status = {
                "observedGeneration": budget["metadata"].get("generation", 1),
                "expectedPods": len(peers),
                "currentHealthy": healthy,
                "desiredHealthy": least,
                "disruptionsAllowed": max(healthy - least, 0),
            }
            pods.write_status(api, budget, status)
