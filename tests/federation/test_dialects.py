"""Every argument we give is one that the installed Flower's own parsers take, and none is old."""

import argparse

import pytest

from tests.federation.federations import children, container, manifest, matrix, pool
from tests.federation.flower import PARSERS, parse_config_args
from tests.federation.kubelet import expanded
from uncurtail.operator.dialects import Grpc, Http, LinkFlags, dialect_of
from uncurtail.operator.rules import problems
from uncurtail.operator.spec import Federation

FEDERATIONS = {name: each for name, each in matrix() if name.endswith("1.41.0")}


def parsed(name, args):
    parser = PARSERS[name]()
    old = {
        option
        for action in parser._actions
        if action.help is argparse.SUPPRESS or "deprecated" in (action.help or "").lower()
        for option in action.option_strings
    }
    assert not old & {arg.partition("=")[0] for arg in args}, "an old flag"
    return parser.parse_args(args)


def all_args(federation):
    for ref, child in children(federation).items():
        if ref.kind in ("StatefulSet", "DaemonSet"):
            for each in child["spec"]["template"]["spec"]["containers"]:
                yield each["name"], [expanded(arg, {"FLOWER_INDEX": "1"}) for arg in each["args"]]


@pytest.mark.parametrize("federation", FEDERATIONS.values(), ids=FEDERATIONS)
def test_flower_takes_what_the_operator_gives(federation):
    seen = {name: parsed(name, args) for name, args in all_args(federation)}
    isolation = federation["spec"]["isolationMode"]
    link, node = seen["superlink"], seen["supernode"]
    assert (link.host, link.port, link.isolation) == ("0.0.0.0", 8000, isolation)
    assert node.superlink == "fed-superlink:9092"
    assert link.insecure == node.insecure == federation["spec"].get("insecure", True)
    if isolation == "process":
        assert seen["superexec-serverapp"].runtime_api_address == f"127.0.0.1:{link.port}"
        assert seen["superexec-clientapp"].runtime_api_address == f"{node.host}:{node.port}"
        assert seen["superexec-clientapp"].insecure, "a SuperNode has no certificate of its own"


def test_a_node_config_reaches_flower():
    federation = manifest(pool(nodeConfig={"partition-id": "{index}", "name": "a b"}))
    (args,) = (args for name, args in all_args(federation) if name == "supernode")
    said = parsed("supernode", args).node_config
    assert parse_config_args([said]) == {"partition-id": 1, "name": "a b"}


def test_authentication_and_certificates_are_handed_over():
    federation = manifest(
        pool(auth={"secretName": "keys"}), insecure=False, tls={"secretName": "tls"}
    )
    seen = {name: parsed(name, args) for name, args in all_args(federation)}
    assert seen["superlink"].enable_supernode_auth
    assert seen["superlink"].ssl_certfile == "/etc/flower/tls/tls.crt"
    assert seen["supernode"].root_certificates == "/etc/flower/tls/ca.crt"
    assert seen["supernode"].auth_supernode_private_key == "/etc/flower/auth/key"


@pytest.mark.parametrize(
    ("version", "image", "dialect"),
    [
        ("1.41.0", "x:1.25.0", Http),
        ("v1.40", "x", Http),
        ("2.0.0", "x", Http),
        ("1.33.0", "x", Grpc),
        ("1.25.0-py3.13-ubuntu24.04", "x", Grpc),
        (None, "flwr/superlink:1.25.0-py3.13", Grpc),
        (None, "localhost:5000/superlink:1.41.0", Http),
        (None, "localhost:5000/superlink", Http),
        ("latest", "x:1.30.0", Grpc),
        ("1.36.0", "x", None),
    ],
)
def test_the_version_chooses_the_flags(version, image, dialect):
    spec = {} if version is None else {"version": version}
    federation = Federation.of(manifest(link={"image": image}, **spec))
    chosen = dialect_of(federation.spec).dialect
    assert (None if chosen is None else type(chosen)) is dialect
    assert any("version" in problem for problem in problems(federation)) == (dialect is None)


def test_a_version_that_nobody_says_is_guessed_and_said_so():
    assert dialect_of(Federation.of(manifest(link={"image": "mine"})).spec).guessed
    assert not dialect_of(Federation.of(manifest()).spec).guessed


def test_older_flower_has_a_port_for_each_api():
    federation = manifest(
        isolationMode="process", link={"image": "flwr/superlink:1.30.0"}, version="1.30.0"
    )
    args = dict(all_args(federation))
    assert "--host=0.0.0.0" not in args["superlink"]
    assert "--clientappio-api-address=127.0.0.1:9094" in args["supernode"]
    assert args["superexec-serverapp"][:2] == [
        "--plugin-type=serverapp",
        "--appio-api-address=127.0.0.1:9091",
    ]
    ports = container(
        next(
            c
            for r, c in children(federation).items()
            if r.name == "fed-superlink" and r.kind == "StatefulSet"
        ),
        "superlink",
    )["ports"]
    assert [port["containerPort"] for port in ports] == [9092, 9093, 9091]


def test_a_plain_api_is_not_heard_outside_of_a_pod_that_has_certificates():
    flags = LinkFlags(isolation="process", insecure=False, tls=True)
    assert "--serverappio-api-address=127.0.0.1:9091" in Grpc().superlink(flags)
