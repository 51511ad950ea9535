"""The garbage collector: what has lost its owners goes, and namespaces that end are emptied."""

from tests.cluster.api import Api, Deletion
from tests.cluster.objects import Json, finalizers_of, is_ending, owners_of

_FOREGROUND = Deletion("Foreground")


def collect(api: Api) -> None:
    """Take one step for each object that needs one."""
    things = list(api.store.objects.values())
    living = {thing["metadata"]["uid"] for thing in things}
    dependents: dict[str, list[Json]] = {}
    for thing in things:
        for owner in owners_of(thing):
            dependents.setdefault(owner["uid"], []).append(thing)
    for thing in things:
        if _is_gone(api, thing):
            continue
        mine = [d for d in dependents.get(thing["metadata"]["uid"], []) if not _is_gone(api, d)]
        if not _orphaned(api, thing, living):
            _finalize(api, thing, mine)
    _namespaces(api)


def _is_gone(api: Api, thing: Json) -> bool:
    metadata = thing["metadata"]
    resource = api.resources.by_kind(thing["apiVersion"], thing["kind"])
    if resource is None:
        return True
    now = api.store.get(api.key(resource, metadata.get("namespace", ""), metadata["name"]))
    return now is None or now["metadata"]["uid"] != metadata["uid"]


def _delete(api: Api, thing: Json, how: Deletion) -> None:
    metadata = thing["metadata"]
    api.delete(api.resource_of(thing), metadata.get("namespace", ""), metadata["name"], how)


def _orphaned(api: Api, thing: Json, living: set[str]) -> bool:
    """Delete what had owners, and has none any more."""
    owners = owners_of(thing)
    if not owners or is_ending(thing) or any(owner["uid"] in living for owner in owners):
        return False
    _delete(api, thing, Deletion())
    return True


def _finalize(api: Api, thing: Json, dependents: list[Json]) -> None:
    """Do what the collector's own finalizers wait for, and take them away."""
    if not is_ending(thing):
        return
    uid, finalizers = thing["metadata"]["uid"], finalizers_of(thing)
    if "orphan" in finalizers:
        for dependent in dependents:
            api.change(dependent, lambda d: _disown(d, uid))
        api.change(thing, lambda t: t["metadata"]["finalizers"].remove("orphan"))
    elif "foregroundDeletion" in finalizers:
        for dependent in dependents:
            if not is_ending(dependent):
                _delete(api, dependent, _FOREGROUND if _blocks(dependent, uid) else Deletion())
        if not any(_blocks(d, uid) and not _is_gone(api, d) for d in dependents):
            api.change(thing, lambda t: t["metadata"]["finalizers"].remove("foregroundDeletion"))


def _blocks(thing: Json, uid: str) -> bool:
    return any(o["uid"] == uid and o.get("blockOwnerDeletion") for o in owners_of(thing))


def _disown(thing: Json, uid: str) -> None:
    thing["metadata"]["ownerReferences"] = [o for o in owners_of(thing) if o["uid"] != uid]


def _namespaces(api: Api) -> None:
    """Empty the namespaces that are ending, and take away those that are empty."""
    for namespace in api.list("namespaces", group=""):
        if not is_ending(namespace):
            continue
        name = namespace["metadata"]["name"]
        content = [thing for key, thing in list(api.store.objects.items()) if key.namespace == name]
        for thing in content:
            if not is_ending(thing) and not _is_gone(api, thing):
                _delete(api, thing, Deletion())
        if not any(key.namespace == name for key in api.store.objects):
            api.finish(api.resource_of(namespace), namespace)
