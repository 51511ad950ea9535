"""What the API server says about itself: groups, kinds, and as much OpenAPI as kubectl asks for."""

from collections.abc import Iterable

from tests.cluster.objects import Json
from tests.cluster.resources import Resource, Resources

VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.0-ground", "platform": "linux/amd64"}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUBRESOURCES = {
    "status": ("", ["get", "patch", "update"]),
    "scale": ("Scale", ["get", "patch", "update"]),
    "log": ("", ["get"]),
    "eviction": ("Eviction", ["create"]),
}


def _group(name: str, versions: Iterable[str]) -> Json:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def legacy_groups(resources: Resources) -> Json:
    groups = [_group(name, versions) for name, versions in resources.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def legacy_group(resources: Resources, name: str) -> Json | None:
    versions = resources.groups().get(name)
    if not versions:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def legacy_resources(resources: Resources, group: str, version: str) -> Json | None:
    """The kinds of one version, as `/apis/GROUP/VERSION` lists them."""
    listed: list[Json] = []
    for resource in resources:
        if (resource.group, resource.version) != (group, version):
            continue
        common = {"namespaced": resource.namespaced, "kind": resource.kind}
        listed.append(
            {
                **common,
                "name": resource.plural,
                "singularName": resource.singular or resource.kind.lower(),
                "verbs": _VERBS,
                "shortNames": list(resource.short_names),
                "categories": list(resource.categories),
            }
        )
        for name in resource.subresources:
            kind, verbs = _SUBRESOURCES[name]
            listed.append(
                {
                    **common,
                    "name": f"{resource.plural}/{name}",
                    "singularName": "",
                    **_kind(resource, kind),
                    "verbs": verbs,
                }
            )
    if not listed:
        return None
    api_version = f"{group}/{version}" if group else version
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version,
        "resources": listed,
    }


def aggregated(resources: Resources, is_core: bool) -> Json:
    """All groups with all their kinds in one answer (apidiscovery.k8s.io/v2)."""
    items = []
    for group, versions in resources.groups().items():
        if is_core != (group == ""):
            continue
        listed = [
            {
                "version": version,
                "freshness": "Current",
                "resources": [
                    _entry(r) for r in resources if (r.group, r.version) == (group, version)
                ],
            }
            for version in versions
        ]
        items.append({"metadata": {"name": group}, "versions": listed})
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    }


def _kind(resource: Resource, kind: str = "") -> Json:
    own = (resource.group, resource.version)
    group, version = {"Scale": ("autoscaling", "v1"), "Eviction": ("policy", "v1")}.get(kind, own)
    return {"group": group, "version": version, "kind": kind or resource.kind}


def _entry(resource: Resource) -> Json:
    return {
        "resource": resource.plural,
        "responseKind": _kind(resource),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular or resource.kind.lower(),
        "verbs": _VERBS,
        "shortNames": list(resource.short_names),
        "categories": list(resource.categories),
        "subresources": [
            {
                "subresource": name,
                "responseKind": _kind(resource, _SUBRESOURCES[name][0]),
                "verbs": _SUBRESOURCES[name][1],
            }
            for name in resource.subresources
        ],
    }


def openapi_index(resources: Resources) -> Json:
    paths = {}
    for group, versions in resources.groups().items():
        for version in versions:
            path = f"apis/{group}/{version}" if group else f"api/{version}"
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}"}
    return {"paths": paths}


def openapi(resources: Resources, group: str, version: str) -> Json:
    """The paths of one version: kubectl asks here whether the server checks fields itself."""
    paths: Json = {}
    schemas: Json = {}
    base = f"/apis/{group}/{version}" if group else f"/api/{version}"
    for resource in resources:
        if (resource.group, resource.version) != (group, version):
            continue
        where = "/namespaces/{namespace}" if resource.namespaced else ""
        paths[f"{base}{where}/{resource.plural}/{{name}}"] = {"patch": _patch(resource)}
        name = ".".join(filter(None, [group, version, resource.kind]))
        schemas[name] = {
            **(resource.schema or {"type": "object"}),
            "x-kubernetes-group-version-kind": [_kind(resource)],
        }
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _patch(resource: Resource) -> Json:
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    return {
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
            for name in names
        ],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": _kind(resource),
    }
