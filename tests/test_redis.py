"""The state plane over a real server: level-triggered, forgetful without harm, never awaited."""

import os
import signal
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from uncurtail.adapters import children, clock
from uncurtail.adapters.redis import (
    HEART_TTL_MS,
    CoordinatorState,
    Keys,
    SitePower,
    SiteState,
    connect,
    reachable,
)
from uncurtail.adapters.redis_server import EmbeddedRedis, free_port, plan_embedded
from uncurtail.adapters.sitewatts import SiteWatts
from uncurtail.core.orders import Announcement, Desired, Heart, StepReport

RUN_ID = f"test-redis-{os.getpid()}"
SITES = ["solar", "windy"]
HEART = Heart(
    session=3, stepping=True, round=7, steps=2, skew_s=0.25, capped=True, trouble="only root may"
)
STEP = StepReport("solar", 3, 7, 0, 10, 2.5, 2048, 100.5)
ANNOUNCEMENT = Announcement(
    epoch=2,
    round=7,
    base_version=5,
    base="objects/5",
    close_in_wall_s=60.0,
    not_after_wall=1060.0,
    tokens_at_start=4096,
    sites=2,
)
DESIRED = {
    "solar": Desired(epoch=2, session=3, train=True, capped=True),
    "windy": Desired(epoch=2, session=1, train=False),
}


def until(condition, seconds=10.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)


class Server:
    """An embedded server that can be killed and started again at its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = plan_embedded()
        self.start()

    def start(self) -> None:
        self.process = self.plan.start(RUN_ID, self.folder, self.folder / "redis.log")
        try:
            until(lambda: reachable(self.plan.url) is None)
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """One server for all tests that leave it running; in a folder with a space in its name."""
    server = Server(tmp_path_factory.mktemp('my "runs" \\ øst'))
    yield server
    server.kill()
    assert children.kill_marked(RUN_ID) == 0


@pytest.fixture
def server(shared):
    """The shared server, empty and running."""
    if shared.process.poll() is not None:
        shared.start()
    with connect(shared.plan.url) as client:
        client.flushall()
    return shared


@pytest.fixture
def sides(server):
    """A coordinator, a site, and a client that looks behind the scenes."""
    client = connect(server.plan.url)
    coordinator = CoordinatorState(server.plan.url, "demo-1", SITES)
    site = SiteState(server.plan.url, "demo-1", "solar")
    yield SimpleNamespace(coordinator=coordinator, site=site, client=client)
    for connection in (client, coordinator._client, site._client):
        connection.close()


def steps(first, last) -> list[dict[str, object]]:
    return [asdict(replace(STEP, step=number)) for number in range(first, last)]


def heard(sides) -> list[int]:
    """The steps that the coordinator hears of now."""
    answer = sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT)
    assert answer is not None
    return [report.step for report in answer[1]]


def test_each_side_sees_what_the_other_wants_and_is(sides):
    assert sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT) == ({}, [])
    answer = sides.site.exchange(asdict(HEART), [asdict(STEP)])
    assert answer is not None
    who, desired, announcement, now = answer
    assert who is not None
    assert who["epoch"] == 2
    assert desired == DESIRED["solar"]
    assert announcement == ANNOUNCEMENT
    assert abs(now - time.time()) < 5.0
    assert sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT) == ({"solar": HEART}, [STEP])


def test_a_site_that_comes_first_finds_nothing_yet(sides):
    answer = sides.site.exchange(asdict(HEART), [])
    assert answer is not None
    assert answer[:3] == (None, None, None)


def test_an_announcement_is_gone_when_its_round_is_closed(sides):
    sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT)
    sides.coordinator.exchange(2, DESIRED, None)
    answer = sides.site.exchange(asdict(HEART), [])
    assert answer is not None
    assert answer[1:3] == (DESIRED["solar"], None)


def test_the_coordinators_beat_moves_so_that_sites_know_it_lives(sides):
    beats = []
    for _ in range(2):
        sides.coordinator.exchange(2, DESIRED, None)
        answer = sides.site.exchange(asdict(HEART), [])
        beats.append(answer[0]["beat"])
        time.sleep(0.005)
    assert beats[0] < beats[1]


def test_a_heart_that_stops_is_forgotten(sides):
    sides.site.exchange(asdict(HEART), [])
    key = Keys("demo-1").heart("solar")
    assert 0 < sides.client.pttl(key) <= HEART_TTL_MS
    sides.client.pexpire(key, 1)
    time.sleep(0.01)
    assert sides.coordinator.exchange(2, DESIRED, None) == ({}, [])


def test_steps_arrive_once_and_in_order(sides):
    sides.site.exchange(asdict(HEART), steps(0, 3))
    sides.site.exchange(asdict(HEART), steps(3, 4))
    assert heard(sides) == [0, 1, 2, 3]
    assert heard(sides) == []
    sides.site.exchange(asdict(HEART), steps(4, 5))
    assert heard(sides) == [4]


def test_more_steps_than_one_exchange_takes_come_with_the_next(sides):
    sides.site.exchange(asdict(HEART), steps(0, 2500))
    assert [*heard(sides), *heard(sides)] == list(range(2500))
    assert heard(sides) == []


def test_a_new_coordinator_hears_only_what_the_old_one_had_not_recorded(sides, server):
    sides.site.exchange(asdict(HEART), steps(0, 3))
    assert heard(sides) == [0, 1, 2]
    assert heard(sides) == []
    sides.site.exchange(asdict(HEART), steps(3, 5))
    successor = CoordinatorState(server.plan.url, "demo-1", SITES)
    answer = successor.exchange(3, DESIRED, None)
    assert answer is not None
    assert [report.step for report in answer[1]] == [3, 4]
    successor._client.close()


def test_steps_that_a_site_wrote_twice_because_it_heard_no_answer_count_once(sides, server):
    """The server hangs: what was sent is carried out later, but the site cannot know."""
    sides.coordinator.exchange(2, DESIRED, None)
    sides.site.exchange(asdict(HEART), [])
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert sides.site.exchange(asdict(HEART), steps(0, 3)) is None
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert sides.site.exchange(asdict(HEART), steps(0, 5)) is not None
    assert heard(sides) == [0, 1, 2, 3, 4]


def test_a_later_round_or_session_may_train_a_step_again(sides):
    again = [replace(STEP, round=8), replace(STEP, session=4), replace(STEP, site="windy")]
    sides.site.exchange(asdict(HEART), [asdict(step) for step in (STEP, *again)])
    answer = sides.coordinator.exchange(2, DESIRED, None)
    assert answer is not None
    assert answer[1] == [STEP, *again]


def test_a_flushed_server_knows_everything_again_after_one_exchange(sides):
    sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT)
    sides.site.exchange(asdict(HEART), steps(0, 3))
    assert heard(sides) == [0, 1, 2]
    sides.client.flushall()
    sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT)
    answer = sides.site.exchange(asdict(HEART), steps(3, 4))
    assert answer is not None
    assert answer[1:3] == (DESIRED["solar"], ANNOUNCEMENT)
    assert sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT) == (
        {"solar": HEART},
        [replace(STEP, step=3)],
    )


def test_runs_on_one_server_do_not_see_each_other(sides, server):
    other = CoordinatorState(server.plan.url, "demo-2", SITES)
    other.exchange(9, {"solar": Desired(9, 9, train=False)}, replace(ANNOUNCEMENT, round=99))
    sides.site.exchange(asdict(HEART), steps(0, 3))
    assert other.exchange(9, {}, None) == ({}, [])
    answer = sides.site.exchange(asdict(HEART), [])
    assert answer is not None
    assert answer[:3] == (None, None, None)
    other._client.close()


def test_without_a_server_both_sides_go_on_and_find_it_again(sides, server):
    sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT)
    sides.site.exchange(asdict(HEART), [])
    server.kill()
    before = time.monotonic()
    assert sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT) is None
    assert "state server" in (sides.coordinator.trouble or "")
    assert sides.site.exchange(asdict(HEART), steps(0, 3)) is None
    assert sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT) is None
    assert time.monotonic() - before < 1.5, "nobody waits for it"
    assert reachable(server.plan.url) is not None
    server.start()
    until(lambda: sides.coordinator.exchange(2, DESIRED, ANNOUNCEMENT) is not None)
    assert sides.coordinator.trouble is None
    answer = sides.site.exchange(asdict(HEART), steps(0, 3))
    assert answer is not None
    assert answer[1:3] == (DESIRED["solar"], ANNOUNCEMENT)
    assert heard(sides) == [0, 1, 2]


def test_a_server_that_hangs_costs_a_second_and_then_nothing(sides, server):
    sides.coordinator.exchange(2, DESIRED, None)
    server.process.send_signal(signal.SIGSTOP)
    try:
        before = time.monotonic()
        assert sides.coordinator.exchange(2, DESIRED, None) is None
        assert time.monotonic() - before < 2.0
        before = time.monotonic()
        for _ in range(100):
            assert sides.coordinator.exchange(2, DESIRED, None) is None
        assert time.monotonic() - before < 0.5
    finally:
        server.process.send_signal(signal.SIGCONT)
    until(lambda: sides.coordinator.exchange(2, DESIRED, None) is not None)


# -- the embedded server --


def test_a_password_is_needed_and_the_right_one(server):
    port = server.plan.port
    assert "authenticate" in (reachable(f"redis://127.0.0.1:{port}/0") or "")
    assert reachable(f"redis://:wrong@127.0.0.1:{port}/0") is not None
    assert reachable(server.plan.url) is None


def test_its_password_is_in_a_private_file_and_on_no_command_line(server):
    config = server.folder / "redis.conf"
    assert server.plan.password in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert server.plan.password.encode() not in command
    assert plan_embedded().password != server.plan.password


def test_it_listens_on_loopback_only_and_keeps_nothing_on_disk(sides, server):
    asked = sides.client.config_get("bind", "save", "appendonly")
    assert asked == {"bind": "127.0.0.1", "save": "", "appendonly": "no"}
    sides.client.set("x", "y")
    server.kill()
    left = {path.name for path in server.folder.iterdir()}
    assert left <= {"redis.conf", "redis.log"}


def test_it_is_found_by_the_runs_mark(server):
    found = [p for p in children.marked(RUN_ID) if p.pid == server.process.pid]
    assert [process.role for process in found] == ["redis"]


def test_when_it_is_full_it_says_so_instead_of_forgetting(sides):
    sides.coordinator.exchange(2, DESIRED, None)
    sides.client.config_set("maxmemory", 1)
    try:
        assert sides.coordinator.exchange(2, DESIRED, None) is None
        assert "maxmemory" in (sides.coordinator.trouble or "")
    finally:
        sides.client.config_set("maxmemory", 256 * 2**20)
    until(lambda: sides.coordinator.exchange(2, DESIRED, None) is not None)


@pytest.mark.parametrize(
    "url",
    ["nonsense", "http://127.0.0.1", "redis://:x@127.0.0.1:1/0", "redis://127.0.0.1:99999/0", ""],
)
def test_a_server_that_cannot_be_used_is_a_reason_not_an_exception(url):
    assert reachable(url)


def test_free_ports_are_free():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert all(1024 < port < 65536 for port in ports)


def test_the_url_is_what_a_client_takes():
    plan = EmbeddedRedis(6379, "a-b_c")
    client = redis.Redis.from_url(plan.url)
    assert client.connection_pool.connection_kwargs["password"] == "a-b_c"
    client.close()


def test_what_a_leader_measures_is_heard_before_there_is_a_heartbeat(sides, server):
    signals = SiteWatts(sides.coordinator)
    power = SitePower(server.plan.url, "demo-1", "solar", 3)
    assert power.say(470.0, "nvml")
    answer = sides.coordinator.exchange(2, DESIRED, None)
    assert answer == ({}, [])
    now = clock.wall()
    (told,) = signals.readings(now - 1.0, now)
    assert (told.site, told.value, told.signal.source) == ("solar", 470.0, "nvml")
    assert abs(told.age_s(now)) < 5.0
    assert signals.readings(now, now + 1.0) == [], "it is told once"
    assert SitePower(server.plan.url, "demo-1", "solar", 2).say(9.0, "nvml")
    sides.coordinator.exchange(2, DESIRED, None)
    assert signals.readings(now, now + 2.0) == [], "that was an older session"
    sides.client.flushall()
    sides.coordinator.exchange(2, DESIRED, None)
    assert sides.coordinator.watts == {}
    power._client.close()


def test_a_measurement_without_a_state_server_is_lost_without_harm():
    power = SitePower(f"redis://127.0.0.1:{free_port()}", "demo-1", "solar", 3)
    assert not power.say(470.0, "nvml")
