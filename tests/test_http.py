"""Whatever a server or the network does is one line of one exception, and holds no secret."""

import math
import socket

import pytest

from tests.signalserver import PASSWORD, TOKEN, USER, Fault, serving
from uncurtail.adapters import http
from uncurtail.adapters.electricitymaps import ElectricityMaps
from uncurtail.adapters.http import Http, SourceError, number
from uncurtail.adapters.watttime import WattTime


@pytest.fixture
def server():
    with serving() as signals:
        yield signals


def said(call) -> SourceError:
    with pytest.raises(SourceError) as caught:
        call()
    for secret in (PASSWORD, TOKEN, "token-1"):
        assert secret not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


FAULTS = [
    pytest.param(Fault("403"), "may not read CAISO_NORTH", 403, id="403"),
    pytest.param(Fault("404"), r"refuses \(404\): scripted", 404, id="404"),
    pytest.param(Fault("429"), r"asks for fewer requests \(429\)", 429, id="429"),
    pytest.param(Fault("500"), r"fails \(500\)", 500, id="500"),
    pytest.param(Fault("503"), r"fails \(503\)", 503, id="503"),
    pytest.param(Fault("slow"), "does not answer in time: 127.0.0.1:", None, id="slow"),
    pytest.param(Fault("truncated"), "broke off its answer: peer closed", None, id="truncated"),
    pytest.param(Fault("not-json"), "answered something that is no JSON", None, id="not-json"),
    pytest.param(Fault("nonsense"), "in another form than documented .*point_time", None,
                 id="nonsense"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "message", "status"), FAULTS)
def test_a_fault_is_one_line_with_its_status(server, fault, message, status):
    server.faults.append(fault)
    source = WattTime(USER, PASSWORD, url=server.url, read_s=0.2 if fault.kind == "slow" else 10.0)
    error = said(lambda: source.history("CAISO_NORTH", 0.0, 300.0))
    assert error.status == status
    assert str(error).startswith("WattTime")
    with pytest.raises(SourceError, match=message):
        raise error


def test_a_server_that_is_not_there_is_named_by_its_address():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = said(lambda: Http("It", f"http://127.0.0.1:{port}").get("/"))
    assert str(error).startswith(f"It cannot be reached at 127.0.0.1:{port}: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("17", 17.0), ("0", 0.0), ("-5", 0.0), ("soon", None), ("inf", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_how_long_to_wait_is_taken_from_the_server(server, text, seconds):
    server.faults.append(Fault("429", headers={"Retry-After": text}))
    error = said(lambda: ElectricityMaps(TOKEN, url=server.url).latest("DE"))
    assert error.retry_after_s == seconds


def test_a_redirect_is_not_followed_for_the_token_is_not_for_another_host(server):
    with serving() as other:
        server.faults.append(Fault("302", headers={"Location": f"{other.url}/v3/x"}))
        error = said(lambda: Http("It", server.url, headers={"auth-token": TOKEN}).get("/v3/x"))
        assert "points elsewhere (302, to 127.0.0.1:" in str(error)
        assert other.requests == []


def test_an_answer_without_end_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 100)
    error = said(lambda: ElectricityMaps(TOKEN, url=server.url).forecast("DE", 0.0))
    assert "answers more than" in str(error)


def test_an_answer_that_drips_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(http, "WHOLE_S", -1.0)
    error = said(lambda: ElectricityMaps(TOKEN, url=server.url).latest("DE"))
    assert "takes more than -1 s" in str(error)


@pytest.mark.parametrize("value", [None, True, "n/a", [], {}, 10**400, "NaN", math.nan])
def test_what_is_no_number_is_unknown(value):
    assert math.isnan(number(value))


def test_numbers_come_as_such_or_as_text():
    assert [number(value) for value in (3, 2.5, "1e3", "-4", math.inf)] == [
        3,
        2.5,
        1e3,
        -4,
        math.inf,
    ]


@pytest.mark.parametrize("secret", [f"{TOKEN}\n", f"{TOKEN}\r\nX: y", f"{TOKEN}ü"])
def test_a_credential_that_no_header_can_carry_is_not_quoted(server, secret):
    error = said(lambda: ElectricityMaps(secret, url=server.url).latest("DE"))
    assert "a credential has characters no header can carry" in str(error)
    assert server.requests == []
