"""A private authority and a client certificate, against a real TLS server."""

import contextlib
import datetime
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedddpm.config import NetworkOptions
from fedddpm.errors import TransportError
from fedddpm.identity import Identity
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm_protocol.wire.messages import SignedDocument

ROSTER = SignedDocument(body=b"roster", signature=bytes(64))


class Authority:
    """A private certificate authority that writes PEM files into a folder."""

    def __init__(self, folder):
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital authority")])
        usage = x509.KeyUsage(*[False] * 5, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
        builder = self.builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.write("ca.pem", builder.add_extension(usage, critical=True).sign(self.key, hashes.SHA256()))

    def builder(self, subject, key):
        now = datetime.datetime.now(datetime.UTC)
        public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(public, critical=False)
            .add_extension(issuer, critical=False)
        )

    def issue(self, name):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = self.builder(subject, key).add_extension(alternative, critical=False)
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self.folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(*pem))
        self.write(f"{name}.pem", builder.sign(self.key, hashes.SHA256()))

    def write(self, name, certificate):
        (self.folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = ROSTER.model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A refused handshake is what the tests want."""


@contextlib.contextmanager
def serve(folder, *, wants_client):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if wants_client:
        context.load_verify_locations(folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    server = QuietServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def folder(tmp_path):
    authority = Authority(tmp_path)
    authority.issue("server")
    authority.issue("client")
    return tmp_path


def ask(url, **options):
    identity = Identity.generate("hospital-a")
    with Connection(url, identity, "hospital-a", NetworkOptions(patience_s=0, **options)) as connection:
        return FederationApi(connection).roster()


def test_a_private_authority_is_trusted_only_when_given(folder):
    with serve(folder, wants_client=False) as url:
        assert ask(url, ca_bundle=folder / "ca.pem") == ROSTER
        with pytest.raises(TransportError, match=r"not trusted.*ca_bundle"):
            ask(url)


def test_a_client_certificate_is_shown(folder):
    with serve(folder, wants_client=True) as url:
        shown = {"client_certificate": folder / "client.pem", "client_key": folder / "client.key"}
        assert ask(url, ca_bundle=folder / "ca.pem", **shown) == ROSTER
        with pytest.raises(TransportError):
            ask(url, ca_bundle=folder / "ca.pem")


def test_http_where_only_https_is_served_is_said_at_once(folder):
    told = pytest.raises(TransportError, match=r"speaks https only\. Set aggregator_url to https://127.0.0.1")
    with serve(folder, wants_client=False) as url, told:
        ask(url.replace("https", "http"))
