"""Pieces of Kubernetes' own objects that a Federation carries: kept as they are."""

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, WithJsonSchema
from pydantic.alias_generators import to_camel

from uncurtail.core.section import Section

Manifest = dict[str, Any]


class KubeSection(Section):
    """A section whose keys are written in camelCase, as everywhere in Kubernetes."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class _Needs:
    """A mapping that has these keys, as strings that are not empty."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys

    def __call__(self, value: Manifest) -> Manifest:
        for key in self._keys:
            if not isinstance(value.get(key), str) or not value[key]:
                raise ValueError(f"needs {key!r}, a string")
        return value


def _open_object(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object of which we read only these properties; all are required."""
    schema: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if properties:
        schema |= {"properties": properties, "required": sorted(properties)}
    return schema


_NAME = {"type": "string", "minLength": 1}
_QUANTITIES = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
    },
}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_LABELLED = {"type": "object", "properties": {"labels": _STRINGS, "annotations": _STRINGS}}

EnvVar = Annotated[
    Manifest, AfterValidator(_Needs("name")), WithJsonSchema(_open_object(name=_NAME))
]
Volume = EnvVar
VolumeMount = Annotated[
    Manifest,
    AfterValidator(_Needs("name", "mountPath")),
    WithJsonSchema(_open_object(name=_NAME, mountPath=_NAME)),
]
Resources = Annotated[
    Manifest,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"limits": _QUANTITIES, "requests": _QUANTITIES},
            "x-kubernetes-preserve-unknown-fields": True,
        }
    ),
]
# `containers` is not required: a template may exist for a toleration alone.
PodTemplate = Annotated[
    Manifest,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "metadata": _LABELLED | {"x-kubernetes-preserve-unknown-fields": True},
                "spec": _open_object(),
            },
        }
    ),
]


def _claim_has_a_name(value: Manifest) -> Manifest:
    _Needs("name")(value.get("metadata") or {})
    return value


VolumeClaim = Annotated[
    Manifest,
    AfterValidator(_claim_has_a_name),
    WithJsonSchema(
        {
            "type": "object",
            "required": ["metadata", "spec"],
            "properties": {
                "metadata": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": _NAME, **_LABELLED["properties"]},
                },
                "spec": _open_object(),
            },
        }
    ),
]
Peer = Annotated[Manifest, WithJsonSchema(_open_object())]
IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
        }
    ),
]
