"""TLS and keys of a run: they verify, they are each run's own, and nobody else can read them."""

import os
import socket
import ssl
import stat
import threading

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from uncurtail.adapters.certificates import (
    keep_secret,
    keep_server_certificates,
    write_secret,
    write_server_certificates,
    write_session_key,
)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "private" / "tls"
    write_server_certificates(folder)
    return folder


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def handshake(server_folder, ca, host="localhost", address="127.0.0.1") -> bytes:
    """What a client that trusts `ca` hears from a server with `server_folder`'s certificate."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server_folder / "server.crt", server_folder / "server.key")
    trusting = ssl.create_default_context(cafile=ca)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    with socket.create_server((address, 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                try:
                    with serving.wrap_socket(connection, server_side=True) as secured:
                        secured.sendall(b"welcome")
                except (ssl.SSLError, OSError):
                    return  # the client turned away

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as connection,
                trusting.wrap_socket(connection, server_hostname=host) as secured,
            ):
                return secured.recv(100)
        finally:
            thread.join()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_runs_authority_reaches_its_server(tls, host):
    assert handshake(tls, tls / "ca.crt", host) == b"welcome"


def test_a_client_of_another_run_turns_away(tls, tmp_path):
    write_server_certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls, tmp_path / "other" / "ca.crt")


def test_the_certificate_is_for_this_machine_alone(tls):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tls, tls / "ca.crt", "example.org")


def test_nothing_of_it_is_readable_by_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        write_server_certificates(tmp_path / "tls")
        write_session_key(tmp_path / "keys" / "solar.1")
        write_secret(tmp_path / "secrets" / "superexec.secret")
    finally:
        os.umask(before)
    modes = {path.name: oct(mode(path)) for path in tmp_path.rglob("*")}
    assert modes == {
        **dict.fromkeys(("tls", "keys", "secrets"), "0o700"),
        **dict.fromkeys(("ca.crt", "server.crt", "server.key"), "0o600"),
        **dict.fromkeys(("solar.1", "solar.1.pub", "superexec.secret"), "0o600"),
    }


def test_the_authoritys_key_is_kept_nowhere(tls):
    names = sorted(path.name for path in tls.iterdir())
    assert names == ["ca.crt", "server.crt", "server.key"]
    assert b"PRIVATE KEY" not in (tls / "ca.crt").read_bytes()


def test_a_session_has_a_key_pair_as_flower_takes_it(tmp_path):
    write_session_key(tmp_path / "solar.1")
    private = serialization.load_ssh_private_key((tmp_path / "solar.1").read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / "solar.1.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_each_session_and_each_secret_is_its_own(tmp_path):
    for name in ("solar.1", "solar.2"):
        write_session_key(tmp_path / name)
        write_secret(tmp_path / f"{name}.secret")
    assert (tmp_path / "solar.1").read_bytes() != (tmp_path / "solar.2").read_bytes()
    secrets = [(tmp_path / f"solar.{n}.secret").read_bytes() for n in (1, 2)]
    assert secrets[0] != secrets[1]
    assert [len(secret) for secret in secrets] == [32, 32]


def test_a_shorter_secret_leaves_nothing_of_a_longer_one_behind(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 1000)
    write_secret(tmp_path / "secret")
    assert len((tmp_path / "secret").read_bytes()) == 32


def test_what_was_readable_before_is_closed_when_it_is_written_anew(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_secret(path)
    assert mode(path) == 0o600


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_that_is_resumed_is_trusted_and_trusts_as_before(tmp_path):
    keep_server_certificates(tmp_path / "tls", "gate.example")
    keep_secret(tmp_path / "gate.secret")
    first, secret = files(tmp_path / "tls"), (tmp_path / "gate.secret").read_bytes()
    for host in ("gate.example", "127.0.0.1", None):
        keep_server_certificates(tmp_path / "tls", host)
    keep_secret(tmp_path / "gate.secret")
    assert files(tmp_path / "tls") == first
    assert (tmp_path / "gate.secret").read_bytes() == secret


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
@pytest.mark.parametrize("torn", [b"", b"half", None], ids=["empty", "half", "of another run"])
def test_what_a_kill_left_half_written_is_made_anew(tmp_path, name, torn):
    folder = tmp_path / "tls"
    for place in (folder, tmp_path / "other"):
        keep_server_certificates(place)
    (folder / name).write_bytes((tmp_path / "other" / name).read_bytes() if torn is None else torn)
    keep_server_certificates(folder)
    assert handshake(folder, folder / "ca.crt") == b"welcome"
    (tmp_path / "gate.secret").write_bytes(b"short")
    keep_secret(tmp_path / "gate.secret")
    assert len((tmp_path / "gate.secret").read_bytes()) == 32


def test_a_certificate_for_another_host_is_made_anew(tmp_path):
    keep_server_certificates(tmp_path, "old.example")
    first = files(tmp_path)
    keep_server_certificates(tmp_path, "new.example")
    assert files(tmp_path)["ca.crt"] != first["ca.crt"]
    assert handshake(tmp_path, tmp_path / "ca.crt", "new.example") == b"welcome"


def test_an_address_of_ipv6_is_an_address(tmp_path):
    keep_server_certificates(tmp_path, "[::1]")
    assert handshake(tmp_path, tmp_path / "ca.crt", "::1") == b"welcome"
