"""Exalsius: what is added to a cluster leaves it in the end, whatever answer fails or is lost."""

import pytest

pytest.importorskip("exalsius_api_client", reason="the extra `exalsius` is not installed")

from tests.exalsiusserver import TOKEN, ExalsiusServer, Fault, serving
from uncurtail.adapters.exalsius import Exalsius, hostname
from uncurtail.adapters.remote import CloudError, RemoteProvisioner
from uncurtail.core.clouds import ExalsiusSite
from uncurtail.core.nodes import NodeState, RemoteSection

RUN = "demo-20260724-060000"
SETTINGS = RemoteSection()
NAMED = ExalsiusSite(cluster_id="north", node_id="rack-1")
OFFER = ExalsiusSite(cluster_id="north", offer_id="h100-4-oslo")


class World:
    """A provisioner over real HTTP; its time is turned by hand, and stands while it asks."""

    def __init__(
        self, server: ExalsiusServer, machine: ExalsiusSite, last=0, living=(), timeout_s=5.0
    ):
        self.server, self.machine, self.now = server, machine, 1000.0
        self.cloud = Exalsius(
            RUN,
            {"oslo": machine},
            {"oslo": last} if last else {},
            url=server.url,
            token=lambda: TOKEN,
            timeout_s=timeout_s,
        )
        self.fleet = RemoteProvisioner(
            self.cloud, ["oslo"], living, SETTINGS, lambda *_: {}, monotonic=lambda: self.now
        )

    def look(self, times=1):
        for _ in range(times):
            self.fleet.step()
            self.now += SETTINGS.poll_wall_s

    def state(self) -> list[tuple[int, NodeState]]:
        return [(node.session, node.state) for node in self.cloud.look()]

    def end(self):
        """As the end of a run: everything is released, until it is seen gone."""
        for _ in range(100):
            for site, sessions in self.fleet.alive().items():
                for session in sessions:
                    self.fleet.release(site, session)
            if not self.fleet.alive():
                break
            self.look()
        assert self.fleet.alive() == {}
        assert self.server.members() == []
        assert all(not node.hostname.startswith("uc-") for node in self.server.nodes.values())


@pytest.fixture
def server():
    with serving() as one:
        one.pool("rack-1", "rack-2")
        yield one


@pytest.fixture(params=[NAMED, OFFER], ids=["named", "offer"])
def world(request, server):
    return World(server, request.param)


def test_a_node_is_added_followed_until_it_is_ready_and_taken_out_again(world):
    world.fleet.provision("oslo", 1)
    world.look(1)
    assert world.fleet.alive() == {"oslo": frozenset({1})}
    world.look(5)
    assert world.state() == [(1, NodeState.READY)]
    assert world.fleet.trouble is None
    assert (world.server.added, len(world.server.members())) == (1, 1)
    world.fleet.release("oslo", 1)
    world.look(1)
    assert world.fleet.alive() == {"oslo": frozenset({1})}, "until it is seen gone"
    world.end()


def test_a_slow_start_is_waited_for(world):
    world.server.deploy_looks = 40
    world.fleet.provision("oslo", 1)
    world.look(30)
    assert world.state() == [(1, NodeState.STARTING)]
    world.look(30)
    assert world.state() == [(1, NodeState.READY)]
    assert world.server.added == 1
    world.end()


def test_a_node_that_fails_is_taken_out_and_made_again_and_says_why(world):
    world.server.broken = "docker is installed"
    world.fleet.provision("oslo", 1)
    said = set()
    for _ in range(20):
        world.look()
        said.add(world.fleet.trouble)
    assert "exalsius says of the node of oslo: FAILED: docker is installed" in said
    assert world.fleet.trouble is None
    assert world.state() == [(1, NodeState.READY)]
    assert (world.server.added, len(world.server.members())) == (2, 1)
    world.end()


@pytest.mark.parametrize("kind", ["lost", "slow", "500", "not-json", "429", "403"])
@pytest.mark.parametrize("where", ["POST", "GET /nodes", "GET /cluster/", "DELETE"])
def test_a_call_that_fails_is_mended_by_the_next(server, where, kind):
    world = World(server, NAMED, timeout_s=0.3 if kind == "slow" else 5.0)
    server.faults.append(Fault(kind, where))
    world.fleet.provision("oslo", 1)
    world.look(20)
    assert world.fleet.trouble is None
    assert world.state() == [(1, NodeState.READY)]
    assert server.added == 1
    world.end()


@pytest.mark.parametrize("kind", ["lost", "500"])
def test_an_offer_whose_import_got_no_answer_is_not_imported_twice(server, kind):
    world = World(server, OFFER)
    server.faults.append(Fault(kind, "POST /node/import"))
    world.fleet.provision("oslo", 1)
    world.look(1)
    assert world.fleet.alive() == {"oslo": frozenset({1})}
    world.look(30)
    assert server.asked("POST /node/import") == (1 if kind == "lost" else 2)
    assert server.added == 1
    world.end()


def test_a_session_that_is_released_while_its_import_is_in_doubt_leaves_nothing(server):
    world = World(server, OFFER)
    server.faults.append(Fault("lost", "POST /node/import"))
    world.fleet.provision("oslo", 1)
    world.look(1)
    world.fleet.release("oslo", 1)
    world.end()
    assert server.added == 0


def test_a_refused_token_is_said_with_its_remedy_and_tried_again(server):
    world = World(server, NAMED)
    server.token = "another"
    world.fleet.provision("oslo", 1)
    world.look(1)
    assert world.fleet.trouble == (
        "exalsius refuses the token (401): token expired: set UNCURTAIL_EXALSIUS_TOKEN to one "
        "that is valid"
    )
    asked = len(server.requests)
    world.now += SETTINGS.max_retry_wall_s
    server.token = TOKEN
    world.look(5)
    assert asked == 1
    assert server.added == 1
    world.end()


def test_a_server_that_asks_for_fewer_requests_gets_fewer(server):
    world = World(server, NAMED)
    server.faults.append(Fault("429", "GET", headers={"Retry-After": "90"}))
    assert world.fleet.step() == 90.0
    assert world.fleet.trouble == "exalsius asks for fewer requests (429)"
    world.now += 89.0
    world.fleet.step()
    assert len(server.requests) == 1
    world.now += 1.0
    world.fleet.step()
    assert len(server.requests) > 1


def test_a_new_coordinator_adopts_the_node_of_the_old_one(world):
    world.fleet.provision("oslo", 4)
    world.look(6)
    again = World(world.server, world.machine, last=4, living=[("oslo", 4)])
    again.look(int(SETTINGS.settle_wall_s / SETTINGS.poll_wall_s) + 2)
    assert again.fleet.alive() == {"oslo": frozenset({4})}
    assert world.server.added == 1
    again.end()


def test_a_coordinator_that_died_in_mid_call_left_a_node_that_is_found(world):
    world.server.faults.append(Fault("lost", "POST"))
    world.fleet.provision("oslo", 1)
    world.look(1)
    again = World(world.server, world.machine, last=1, living=[("oslo", 1)])
    again.fleet.provision("oslo", 1)
    again.look(8)
    assert again.state() == [(1, NodeState.READY)]
    assert world.server.added == 1
    again.end()


def test_a_named_node_that_is_in_the_cluster_for_somebody_else_is_left_there(server):
    server.nodes["rack-1"].status, server.nodes["rack-1"].cluster = "DEPLOYED", "north"
    world = World(server, NAMED)
    world.fleet.provision("oslo", 1)
    world.look(3)
    assert world.fleet.trouble == (
        "exalsius: node rack-1 of oslo is in the cluster already, and not by this run: remove it "
        "there, or name another node"
    )
    world.fleet.release("oslo", 1)
    world.look(20)
    assert world.fleet.alive() == {}
    assert server.members() == ["rack-1"]


def test_what_another_run_imported_is_not_ours(server):
    other = hostname("other-20260724-060000", "oslo", 1)
    server.nodes["x"] = type(server.nodes["rack-1"])("x", other, "AVAILABLE")
    world = World(server, OFFER)
    assert world.state() == []


def test_a_nodes_name_is_a_dns_label_whatever_the_run_is_called():
    name = hostname("x" * 57, "s" * 31, 99_999_999)
    assert len(name) <= 63
    assert name.startswith("uc-")


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("404", "exalsius refuses (404): scripted"),
        ("500", "exalsius fails (500): scripted"),
        ("nonsense", "exalsius answered in another form than documented ("),
        ("not-json", "exalsius answered in another form than documented ("),
        ("lost", "exalsius does not answer in time or breaks off: 127.0.0.1:"),
    ],
)
def test_every_fault_is_one_line_without_the_token(server, fault, line):
    server.faults.append(Fault(fault, "GET /nodes"))
    with pytest.raises(CloudError) as error:
        World(server, NAMED).cloud.look()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)


def test_nobody_there_is_said_and_nothing_happened():
    with serving() as gone:
        gone.pool("rack-1")
    world = World(gone, NAMED)
    with pytest.raises(CloudError, match=r"cannot be reached: 127\.0\.0\.1:\d+ \(NewConn") as error:
        world.cloud.create("oslo", 1, {})
    assert not error.value.unsure


def test_a_token_that_is_renewed_is_taken_from_then_on(server):
    tokens = iter(["old", "new"])
    cloud = Exalsius(
        RUN, {"oslo": NAMED}, {}, url=server.url, token=lambda: next(tokens), timeout_s=5.0
    )
    server.token = "new"
    with pytest.raises(CloudError, match="401"):
        cloud.look()
    assert cloud.look() == []


def test_the_clusters_that_a_token_may_see(server):
    assert World(server, NAMED).cloud.clusters() == ["north (READY)"]
