"""What is read of requests, what every response carries, and that strangers are refused before they are listened to."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.types import Message, Receive, Scope, Send
from tests.aggregator.support.driver import STEPS, Institution, drive, take_seats
from tests.aggregator.support.federations import ServerProcess, identity_of
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state
from tests.aggregator.support.wire import answer, connected, ended, head_of

from fedddpm_aggregator.db.tables import EvidenceRow, JoinRow, NonceRow
from fedddpm_aggregator.errors import OperatorError, TooManyRequestsError, UnavailableError
from fedddpm_aggregator.http.guard import MAX_HEADERS, MAX_TARGET, Budget, Guard, Sizes
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.server.tls import Certificate

WARM = 20  # joins after which the server's memory has what it needs
pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)


@pytest.fixture
def site(new_federation: NewFederation, serve: Serve) -> Site:
    return serve(new_federation())


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_heads_of_requests_have_limits(site: Site) -> None:
    http = site["a"].http
    assert refusal(http.get("/healthz", headers={f"x-{n}": "x" for n in range(MAX_HEADERS)})) == (
        431,
        "headers-too-large",
    )
    assert refusal(http.get("/healthz", headers={"x-long": "x" * 17_000})) == (431, "headers-too-large")
    assert refusal(http.get(f"/healthz?{'x' * MAX_TARGET}")) == (414, "target-too-long")
    assert http.get(f"/healthz?{'x' * 100}").status_code == 200


def test_a_head_without_end_is_refused(site: Site) -> None:
    with connected(site.url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)
        refused = answer(ended(connection))
    assert (refused.status, refused.problem["code"]) == (431, "headers-too-large")


def test_what_is_no_http_is_refused(site: Site) -> None:
    with connected(site.url) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00 hello\r\n\r\n")
        refused = answer(ended(connection))
    assert (refused.status, refused.problem["code"]) == (400, "bad-request")


def test_every_response_has_secure_headers(site: Site) -> None:
    responses = [site["a"].http.get(path) for path in ("/healthz", "/nowhere", "/v1/state", "/openapi.json")]
    responses.append(site["a"].send("GET", "/v1/state"))
    for response in responses:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"]
        assert "strict-transport-security" not in response.headers
    assert responses[-1].headers["cache-control"] == "no-store"


def test_no_body_of_a_stranger_is_read(site: Site) -> None:
    stranger = Institution(site.url, "stranger", identity_of("stranger"))
    request = stranger.signed("PUT", "/v1/sessions/x/decoder/chunks/decoder/0", b"x" * 4_000_000)
    stranger.close()
    with connected(site.url) as connection:
        connection.sendall(head_of(request))  # and not one byte of the body
        refused = answer(ended(connection))
    assert (refused.status, refused.problem["code"]) == (403, "not-enrolled")


def test_unsigned_paths_take_no_large_bodies(site: Site) -> None:
    assert refusal(site["a"].http.post("/healthz", content=b"x" * 5000)) == (413, "too-large")


async def waiting(budget: Budget, size: int, hold: asyncio.Event | None = None) -> int:
    async with budget.of(size):
        if hold is not None:
            await hold.wait()
    return size


def test_bodies_wait_for_room_but_not_for_ever(new_federation: NewFederation) -> None:
    async def scenario() -> None:
        budget, hold = Budget(100, wait_s=30), asyncio.Event()
        first = asyncio.create_task(waiting(budget, 80, hold))
        await asyncio.sleep(0)
        second = asyncio.create_task(waiting(budget, 30))
        third = asyncio.create_task(waiting(budget, 20))
        assert await third == 20  # there is room for this one
        assert not second.done()
        hold.set()
        assert await asyncio.gather(first, second) == [80, 30]
        assert await waiting(budget, 1000) == 1000  # alone it passes
        full, again = Budget(10, wait_s=0.01), asyncio.Event()
        holder = asyncio.create_task(waiting(full, 10, again))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="too many uploads at once"):
            await waiting(full, 1)
        assert await waiting(full, 0) == 0  # without a body there is nothing to wait for
        again.set()
        await holder

    asyncio.run(scenario())


def test_one_identity_does_not_take_all_the_room(new_federation: NewFederation) -> None:
    async def sent(budget: Budget, size: int, who: str, there: asyncio.Event) -> int:
        async with budget.of(size, who):
            await there.wait()
        return size

    async def scenario() -> None:
        budget, there = Budget(800, wait_s=0.01), asyncio.Event()
        slow = [asyncio.create_task(sent(budget, 40, "a", there)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequestsError, match="'a' is sending other bodies"):
            await sent(budget, 40, "a", there)
        others = [asyncio.create_task(sent(budget, size, who, there)) for who, size in (("b", 400), ("", 300))]
        await asyncio.sleep(0)  # a large one is fine, if it is the only one of its sender
        there.set()
        assert await asyncio.gather(*slow, *others) == [40, 40, 400, 300]
        assert await sent(budget, 800, "a", there) == 800

    asyncio.run(scenario())


def test_a_length_beside_chunked_encoding_makes_no_body_smaller(new_federation: NewFederation) -> None:
    """HTTP counts the length for nothing then, and so must the budget."""
    limit = 3000

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> list[int]:
        guard, read = Guard(app, Sizes(limit, limit, budget=limit, budget_wait_s=0.01)), asyncio.Event()

        async def receive() -> Message:
            await read.wait()
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def ask(*headers: tuple[bytes, bytes]) -> int:
            scope = {"type": "http", "scheme": "http", "method": "PUT", "path": "/v1/x", "query_string": b""}
            statuses: list[int] = []

            async def send(message: Message) -> None:
                statuses.append(message.get("status", 0))

            await guard({**scope, "headers": list(headers)}, receive, send)
            return statuses[0]

        both = asyncio.create_task(ask((b"content-length", b"1"), (b"transfer-encoding", b"chunked")))
        await asyncio.sleep(0)
        refused = await ask((b"content-length", b"1"))
        read.set()
        return [await both, refused, await ask((b"content-length", b"1"))]

    assert asyncio.run(scenario()) == [200, 503, 200]


def test_a_round_passes_through_a_narrow_budget(new_federation: NewFederation) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    with served_here(federation.settings.model_copy(update={"max_buffered_bytes": 700})) as url:
        site = Site(federation, url)
        seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
        drive(seats)
        check_part(site, 0, seats)
        site.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.soak)])
def test_many_joins_by_one_identity_leave_bounded_traces(new_federation: NewFederation, count: int) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, join_s=3600.0)  # the others join after all of them
    server = ServerProcess(federation)
    server.variables = {"FEDDDPM_AGGREGATOR_RATE_PER_IDENTITY": "0"}
    server.start()
    try:
        site = Site(federation, server.url)
        state = first_state(site)
        for seq in range(1, count + 1):
            if seq == WARM:
                before = resident_kib(server)
            (again,) = take_seats([site["a"]], federation.roster, state, "decoder")
            assert again.join(seq) == ("accepted" if seq == 1 else "replaced")
        assert resident_kib(server) - before < 20_000
        with federation.context() as ctx, ctx.database.read() as db:
            rows = db.query(JoinRow).count() + db.query(EvidenceRow).count()
            assert rows == 1
            assert db.query(NonceRow).count() < count + 100
        others = [institution for name, institution in site.institutions.items() if name != "a"]
        seats = [again, *take_seats(others, federation.roster, state, "decoder")]
        drive(seats[1:], STEPS[:1])
        drive(seats, STEPS[1:])
        check_part(site, 0, seats)
        site.close()
    finally:
        server.kill()


def resident_kib(server: ServerProcess) -> int:
    assert server._process is not None
    text = Path(f"/proc/{server._process.pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")))


# --- TLS -------------------------------------------------------------------------------------------------------------


def write_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return chain, private


def shown_by(context: ssl.SSLContext) -> str:
    """The name in the certificate that a handshake shows."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    client = client_context.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_a_renewed_certificate_is_used_without_a_restart(new_federation: NewFederation, tmp_path: Path) -> None:
    chain, private = write_certificate(tmp_path, "old.example")
    certificate = Certificate(chain, private)
    certificate.check()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    assert not certificate.renew(context)
    assert shown_by(context) == "old.example"
    private.write_text("half a file")
    assert not certificate.renew(context)  # told in the log
    assert shown_by(context) == "old.example"
    write_certificate(tmp_path, "new.example")
    assert certificate.renew(context)
    assert shown_by(context) == "new.example"


def test_a_certificates_key_that_others_can_read_is_not_used(
    new_federation: NewFederation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain, private = write_certificate(tmp_path, "old.example")
    certificate = Certificate(chain, private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    write_certificate(tmp_path, "new.example")
    private.chmod(0o644)
    with pytest.raises(OperatorError, match=r"--tls-key: everybody .*key.pem \(mode 0644\)\. Run: chmod 600"):
        certificate.check()
    assert not certificate.renew(context)
    assert "the certificate was not renewed" in caplog.text
    assert shown_by(context) == "old.example"
    private.chmod(0o600)  # its content stays, and it is looked at again
    assert certificate.renew(context)
    assert shown_by(context) == "new.example"
