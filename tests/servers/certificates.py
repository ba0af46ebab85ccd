"""A throw-away certificate authority, and what it signed for a server and a client."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.servers.ports import LOOPBACK


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files. ``stranger_authority`` signed nothing here: nobody may accept it."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger_authority: Path


def make_certificates(folder: Path, client_name: str = "client") -> Certificates:
    """``client_name`` is the client certificate's common name: the user, for etcd."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = _Authority("leadership tests")
    server, server_key = authority.sign("server", ExtendedKeyUsageOID.SERVER_AUTH)
    client, client_key = authority.sign(client_name, ExtendedKeyUsageOID.CLIENT_AUTH)

    def write(name: str, content: bytes) -> Path:
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path

    return Certificates(
        authority=write("authority.pem", authority.certificate_pem()),
        server=write("server.pem", server),
        server_key=write("server-key.pem", server_key),
        client=write("client.pem", client),
        client_key=write("client-key.pem", client_key),
        stranger_authority=write("stranger.pem", _Authority("stranger").certificate_pem()),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        # Valid since an hour ago: the clock of a machine may step back under a test.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


class _Authority:
    def __init__(self, common_name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        self._certificate = (
            _builder(name, name)
            .public_key(self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, common_name: str, usage: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
        certificate = (
            _builder(_name(common_name), self._certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return certificate.public_bytes(serialization.Encoding.PEM), key_pem
