"""What an API server does with a custom resource: defaults, schema, keys of lists, CEL rules."""

import copy
import importlib.util
import warnings
from typing import Any

NEEDS = [name for name in ("cel", "jsonschema") if importlib.util.find_spec(name) is None]
MISSING = f"not installed: {', '.join(NEEDS)} (of the extra test)"


def admitted(manifest, crd) -> tuple[dict[str, Any], list[str]]:
    """The object with its defaults, and why it would be refused."""
    import jsonschema

    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    made = with_defaults(copy.deepcopy(manifest), schema)
    validator = jsonschema.Draft202012Validator(_plain(schema))
    errors = [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(made)]
    if not errors:
        errors = [*_duplicates(made, schema), *_broken_rules(made, schema)]
    return made, errors


def holds(rule, value) -> bool:
    """The verdict of a CEL rule."""
    with warnings.catch_warnings():
        # typer, which the engine's package imports, reads a name that its newest click calls old.
        warnings.simplefilter("ignore", DeprecationWarning)
        import cel

    return bool(cel.evaluate(rule, {"self": value}))


def with_defaults(value, schema):
    """Defaults go into what is there; an absent object stays absent."""
    if isinstance(value, dict):
        for name, each in schema.get("properties", {}).items():
            if name not in value and "default" in each:
                value[name] = copy.deepcopy(each["default"])
            if name in value:
                value[name] = with_defaults(value[name], each)
    elif isinstance(value, list):
        return [with_defaults(each, schema.get("items", {})) for each in value]
    return value


def _plain(schema):
    """As a JSON schema; a field that is not known is refused, where a server only drops it."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _plain(each) for name, each in value.items()}
        elif not key.startswith("x-kubernetes"):
            made[key] = _plain(value) if key in ("items", "additionalProperties") else value
    open_ = schema.get("x-kubernetes-preserve-unknown-fields")
    named = "properties" in schema and "metadata" not in schema["properties"]
    if named and not open_ and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


def _duplicates(value, schema) -> list[str]:
    found: list[str] = []
    if isinstance(value, dict):
        for name, each in schema.get("properties", {}).items():
            if name in value:
                found += _duplicates(value[name], each)
    elif isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        seen = [tuple(each.get(key) for key in keys) for each in value] if keys else []
        found += [f"Duplicate value: {key}" for key in seen if seen.count(key) > 1]
        for each in value:
            found += _duplicates(each, schema.get("items", {}))
    return found


def _broken_rules(value, schema) -> list[str]:
    found = [
        rule["message"]
        for rule in schema.get("x-kubernetes-validations", [])
        if not holds(rule["rule"], value)
    ]
    for name, each in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            found += _broken_rules(value[name], each)
    return found
