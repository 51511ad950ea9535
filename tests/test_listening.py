"""What a run cannot listen on, or finds nobody at, is told before anything is started."""

import socket

import pytest

from tests.virtual import experiment
from uncurtail.adapters.redis_server import free_port
from uncurtail.config import ConfigError
from uncurtail.listening import check_port


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_run_that_asks_for_nothing_special_can_start():
    check_port(experiment())


def test_a_gate_that_cannot_listen_is_told(taken):
    for listen in ("127.0.0.1", "0.0.0.0"):
        gate = {"address": f"gate.example:{taken}", "listen": listen}
        with pytest.raises(
            ConfigError, match=rf"on {listen}, port {taken} \(Address already in use"
        ):
            check_port(experiment(gate=gate))
    not_ours = {"address": f"gate.example:{free_port()}", "listen": "203.0.113.7"}
    with pytest.raises(ConfigError, match=r"the gate cannot listen on 203\.0\.113\.7"):
        check_port(experiment(gate=not_ours))


def test_a_port_that_is_free_is():
    gate = {"address": f"[::1]:{free_port()}", "listen": "127.0.0.1"}
    check_port(experiment(gate=gate))


def test_a_port_that_is_taken_and_a_superlink_that_is_away_are_told(taken, tmp_path):
    with pytest.raises(ConfigError, match=f"flower.port = {taken} is taken"):
        check_port(experiment(flower={"port": taken}))
    ca = tmp_path / "ca.crt"
    check_port(experiment(flower={"superlink": f"127.0.0.1:{taken}", "superlink_ca": str(ca)}))
    away = {"superlink": f"127.0.0.1:{free_port()}", "superlink_ca": str(ca)}
    with pytest.raises(ConfigError, match="does not answer: start it"):
        check_port(experiment(flower=away))
