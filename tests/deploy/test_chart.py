"""The Helm chart of a run: made from the program's own parts, and valid once it is filled in."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from tests.charts import RUN, rendered
from uncurtail.config import load
from uncurtail.deploy.chart import template
from uncurtail.deploy.needs import grace_s
from uncurtail.deploy.render import Request, render

HERE = Path(__file__).parents[2]
TEMPLATE = RUN / "templates/coordinator.yaml"
THREE = HERE / "experiments/three-regions.toml"


def values():
    return yaml.safe_load((RUN / "values.yaml").read_text(encoding="utf-8"))


def installed(**changed):
    return rendered(RUN, "nights", "ml", **changed)


def test_the_template_is_made_from_the_programs_own_parts():
    assert TEMPLATE.read_text(encoding="utf-8") == template(), (
        "run: uncurtail deploy chart > deploy/helm/uncurtail/templates/coordinator.yaml"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate (of the extra test) is not installed",
)
def test_what_the_chart_installs_is_valid():
    import kubernetes_validate

    for document in installed(experiment=THREE.read_text(encoding="utf-8")):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_every_value_is_used_and_every_used_value_is_given():
    def leaves(of, path=()):
        for key, value in of.items():
            if key == "gate":
                yield from leaves(value, (*path, key))
            else:
                yield ".".join((*path, key))

    used = re.findall(r"\.Values\.([\w.]+)", TEMPLATE.read_text(encoding="utf-8"))
    assert set(used) == set(leaves(values()))


def test_an_experiment_arrives_as_it_is_whatever_is_in_it():
    text = 'name = "a: {b}"\n\t# <tags> & \'quotes\' "too"\n'
    (config_map,) = (d for d in installed(experiment=text) if d["kind"] == "ConfigMap")
    assert config_map["data"]["experiment.toml"] == text


def test_the_chart_says_what_the_command_says_but_for_names_and_what_may_be_missing():
    def shape(document):
        spec = document["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        return container["command"], container["securityContext"], mounts, spec["securityContext"]

    def of(documents):
        (found,) = (each for each in documents if each["kind"] == "StatefulSet")
        return found

    assert shape(of(installed())) == shape(of(render(Request(THREE)).documents))


def test_the_values_give_a_drain_the_time_that_it_takes():
    assert values()["terminationGracePeriodSeconds"] == grace_s(load(THREE))
