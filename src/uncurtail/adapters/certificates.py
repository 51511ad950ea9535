"""TLS for the run's own SuperLink, and a key pair for each session of a site.

Also on loopback: without them any local user could submit code to our sites.
"""

import base64
import datetime
import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from uncurtail.adapters import clock

_SIGNS_CERTIFICATES = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=True,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)
VALID_DAYS = 400  # longer than a run; the folder is private, and each run has its own
RENEW_DAYS = 60  # a run that goes on with less left gets new ones
SECRET_BYTES = 32


def keep_server_certificates(folder: Path, host: str | None = None) -> None:
    """Write them unless they are there, whole, for `host`, and valid for long enough.

    Machines that were let in trust this authority: a run that is resumed keeps it.
    """
    if not _usable(folder, host):
        write_server_certificates(folder, host)


def _usable(folder: Path, host: str | None) -> bool:
    now = datetime.datetime.fromtimestamp(clock.wall(), tz=datetime.UTC)
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        server = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
        server.verify_directly_issued_by(ca)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False  # a first start, or one that was killed while it wrote them
    left = server.not_valid_after_utc - now
    return (
        key.public_key() == server.public_key()
        and (host is None or _name(host) in names)
        and left >= datetime.timedelta(days=RENEW_DAYS)
    )


def write_server_certificates(folder: Path, host: str | None = None) -> None:
    """Write ca.crt, server.crt and server.key for localhost, and for `host`, a name or address.

    The folder is private.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "uncurtail run")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS_CERTIFICATES, critical=True)  # Python 3.13 refuses a CA without
    )
    ca_certificate = _with_key_ids(ca, ca_key, ca_key).sign(ca_key, hashes.SHA384())
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = dict.fromkeys(["localhost", "127.0.0.1", *([] if host is None else [host])])
    hosts = x509.SubjectAlternativeName([_name(name) for name in names])
    server = _builder(name, ca_name, key.public_key()).add_extension(hosts, critical=False)
    certificate = _with_key_ids(server, key, ca_key).sign(ca_key, hashes.SHA384())
    _write_private(folder / "ca.crt", ca_certificate.public_bytes(serialization.Encoding.PEM))
    _write_private(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM))
    _write_private(
        folder / "server.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def write_session_key(path: Path) -> None:
    """Write an ECDSA P-384 key pair: `path` (private) and `path`.pub, in OpenSSH form."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write_private(path.with_name(f"{path.name}.pub"), public)


def session_key(text: str) -> str:
    """The public key of a session, in OpenSSH form without a comment.

    Raises:
        ValueError: It is none, or of another kind.
    """
    key = _public_key(text)
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


def flower_key(text: str) -> str:
    """A session's public key as Flower 1.41 has it in the header of a SuperNode's request."""
    pem = _public_key(text).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(pem).decode()


def _public_key(text: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("not an ECDSA P-384 key")
    return key


def write_secret(path: Path) -> None:
    """Write 32 random bytes that only this user can read."""
    _write_private(path, os.urandom(SECRET_BYTES))


def keep_secret(path: Path) -> None:
    """Write a secret unless one is there, whole."""
    if not path.is_file() or path.stat().st_size != SECRET_BYTES:
        write_secret(path)


def site_token(secret: bytes, site: str) -> str:
    """What a site's machine shows at the gate; it speaks for this site and no other."""
    return hmac.new(secret, f"site {site}".encode(), hashlib.sha256).hexdigest()


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(clock.wall(), tz=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _with_key_ids(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    issuer: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    return builder.add_extension(subject_id, critical=False).add_extension(
        issuer_id, critical=False
    )


def _write_private(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)  # also a file that was there before
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
