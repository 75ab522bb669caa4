"""The log of a real server process: JSON with ids on every line, and no secret in it, whatever went wrong."""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import httpx
import psycopg
import pytest
from pydantic import BaseModel
from tests.aggregator.support.driver import STEPS, Institution, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.federations import Federation, ServerProcess, identity_of
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state, result_of
from tests.support.postgresql import NewDatabase

from fedddpm_aggregator.app import KEY_PURPOSE
from fedddpm_aggregator.security.key_files import read_key
from fedddpm_aggregator.telemetry.logs import JsonFormatter, note, noting

PASSWORD = "hunter2" * 2
S3_SECRET = "s3-" + secrets.token_hex(16)
REFUSE = "ALTER TABLE {} ADD CONSTRAINT refused CHECK (false) NOT VALID"  # PostgreSQL tells the row that it refuses
Line = dict[str, object]


class Recorder(Institution):
    """Keeps the signature headers it sent."""

    sent: list[str]

    def signed(self, *arguments: object, **keywords: object) -> httpx.Request:
        request = super().signed(*arguments, **keywords)  # type: ignore[arg-type]
        self.sent = [*getattr(self, "sent", ()), request.headers["signature"], request.headers["signature-input"]]
        return request


@dataclass
class Logged:
    """A round over PostgreSQL with everything at DEBUG, refusals of all kinds, and a database that breaks."""

    text: str
    seats: list[Seat]
    signatures: list[str]
    secrets: dict[str, bytes] = field(default_factory=dict)
    request_id: str = ""

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, **fields: object) -> list[Line]:
        return [line for line in self.lines if fields.items() <= line.items()]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, new_postgresql_database: NewDatabase) -> Iterator[Logged]:
    url = new_postgresql_database()
    federation = Federation(tmp_path_factory.mktemp("logged"), url.replace("postgres@", f"postgres:{PASSWORD}@"))
    federation.start_run(rounds=2)
    server = ServerProcess(federation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDDDPM_AGGREGATOR_LOG_LEVEL", "DEBUG")
        patch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
        server.start()
    site = Site(federation, server.url)
    for name in site.institutions:
        site[name].close()
        site.institutions[name] = Recorder(server.url, name, identity_of(name))
    try:
        seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
        drive(seats, STEPS[:-1])
        drive(seats[:3], ["unmask"])
        _unmask_in_vain(seats[3], url)
        result_of(site, 0)
        again = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
        drive(again, ["join"])
        again[0].share()
        given = "trace.me-7"
        for sent, back in ((given, True), ("no id", False), ("x" * 65, False)):
            answer = site["a"].http.send(site["a"].signed("GET", "/v1/roster", headers={"x-request-id": sent}))
            assert (answer.headers["x-request-id"] == sent) is back
        _provoke(site, again, url)
        server.kill()
        signatures = [text for one in site.institutions.values() for text in getattr(one, "sent", ())]
        text = (federation.folder / "server.log").read_text()
        held = _secrets(federation, [*seats, *again])
        yield Logged(text, [*seats, *again], signatures, held, given)
    finally:
        site.close()
        server.kill()


def _unmask_in_vain(seat: Seat, url: str) -> None:
    """The database refuses the row of an answer at first."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(REFUSE.format("messages").encode())
        with pytest.raises(ProblemError) as refusal:
            seat.unmask()
        assert refusal.value.status == 503
        connection.execute(b"ALTER TABLE messages DROP CONSTRAINT refused")
    seat.post("unmask", seat.unmask_message)


def _provoke(site: Site, seats: list[Seat], url: str) -> None:
    """Requests that are refused, and requests that fail inside, with messages of institutions in their bodies."""
    first, path = seats[0], seats[0].path
    for step in ("joins", "shares", "upload", "confirmations", "unmask"):
        with pytest.raises(ProblemError) as refusal:
            first.institution.send("POST", f"{path}/{step}", json.dumps({"body": "5f" * 32}).encode())
        assert refusal.value.status == 422
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(REFUSE.format("shares").encode())
        connection.execute(REFUSE.format("messages").encode())
    for attempt in (seats[1].share, seats[2].share, seats[3].share):
        with pytest.raises(ProblemError) as refusal:
            attempt()
        assert refusal.value.status == 503


def _secrets(federation: Federation, seats: Iterable[Seat]) -> dict[str, bytes]:
    found = {f"identity of {name}": identity_of(name).seed for name in federation.members}
    found["server key"] = read_key(federation.settings.key_path, KEY_PURPOSE).seed
    for seat in seats:
        for number, item in enumerate(seat.shares_message.items if hasattr(seat, "shares_message") else ()):
            found[f"share {number} of {seat.name}"] = item.sealed
        for (segment, index), chunk in seat.chunks.items():
            found[f"masked {segment}/{index} of {seat.name}"] = bytes(chunk)
        if hasattr(seat, "unmask_message"):
            found[f"answer of {seat.name}"] = seat.unmask_message.model_dump_json().encode()
    return found


def test_nothing_secret_is_in_the_log(logged: Logged) -> None:
    assert len(logged.lines) > 100
    assert logged.of(level="error", message="database error"), "the database did not break"
    assert logged.of(level="debug"), "nothing was logged at DEBUG"
    for what, secret in logged.secrets.items():
        for form in _forms(secret):
            assert form not in logged.text, what
    for signature in logged.signatures:
        assert signature.split(":")[1][:24] not in logged.text if ":" in signature else signature not in logged.text
    for text in (PASSWORD, S3_SECRET, "5f" * 32, "PRIVATE"):
        assert text not in logged.text


def _forms(secret: bytes) -> set[str]:
    """Beginnings of a secret as a log could show it."""
    start = secret[:24]
    shown = json.dumps(repr(start)[2:-1])[1:-1]  # as a line of JSON would have it
    forms = {start.hex(), base64.b64encode(start).decode(), base64.urlsafe_b64encode(start).decode(), shown}
    return forms | ({secret[20:60].decode()} if secret.isascii() else set())


def test_a_request_leaves_one_line_that_says_what_it_was_about(logged: Logged) -> None:
    joins = [line for line in logged.of(message="request") if str(line["route"]).endswith("/joins")]
    assert len(joins) == 8 + 1
    accepted = [line for line in joins if line["status"] == 200]
    assert {line["member"] for line in accepted} == {"a", "b", "c", "d"}
    for line in accepted:
        assert line["level"] == "info"
        assert line["method"] == "POST"
        assert line["route"] == "/v1/sessions/{spec}/{part}/joins"
        assert (line["run"], line["attempt"], line["part"]) == ("run-1", 0, "decoder")
        assert line["round"] in (0, 1)
        assert isinstance(line["session"], int)
        assert isinstance(line["ms"], float)
        assert line["bytes_in"] > 100  # type: ignore[operator]
        assert line["bytes_out"] > 10  # type: ignore[operator]
    (refused,) = (line for line in joins if line["status"] != 200)
    assert refused["problem"] == "validation"
    assert len({line["request_id"] for line in logged.of(message="request")}) == len(logged.of(message="request"))


def test_long_polls_are_told_at_debug_only(logged: Logged) -> None:
    polls = [line for line in logged.of(message="request", route="/v1/state") if "long_poll" in line]
    assert polls
    assert {line["level"] for line in polls} == {"debug"}


def test_a_clients_request_id_is_kept_if_it_is_one(logged: Logged) -> None:
    (line,) = logged.of(request_id=logged.request_id)
    assert line["route"] == "/v1/roster"
    assert not [line for line in logged.lines if line.get("request_id") in ("no id", "x" * 65)]


def test_what_happens_to_a_round_names_it(logged: Logged) -> None:
    names = {"run": "run-1", "round": 0, "attempt": 0}
    phases = logged.of(message="phase closed", part="decoder", **names)
    assert [line["now"] for line in phases] == ["shares", "masked", "confirm", "unmask", "opening", "done"]
    assert logged.of(message="sum opened", part="decoder", **names)
    assert logged.of(message="round published", **names)
    (error, *_) = logged.of(message="database error")
    assert {"run", "round", "attempt", "session", "part", "member", "request_id"} <= error.keys()
    assert "CheckViolation" in str(error["traceback"])


def test_a_validation_error_shows_no_input() -> None:
    class Message(BaseModel):
        share: int

    def fail() -> None:
        try:
            Message.model_validate({"share": "5f" * 32})
        except ValueError as error:
            raise RuntimeError("no such message") from ExceptionGroup("several", [error])

    try:
        fail()
    except RuntimeError as error:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", None, (RuntimeError, error, None))
    text = JsonFormatter().format(record)
    assert "5f5f" not in text
    assert "share: int_parsing" in text
    assert "RuntimeError: no such message" in text
    assert __file__.rsplit("/", 1)[-1] in text


def test_notes_end_with_their_request() -> None:
    def line() -> Line:
        found: Line = json.loads(JsonFormatter().format(logging.LogRecord("x", 20, "", 1, "m", None, None)))
        return {name: found[name] for name in ("run", "part") if name in found}

    note(run="outside")
    with noting(run="r"):
        note(part="p")
        with noting(run="inner"):
            assert line() == {"run": "inner", "part": "p"}
        assert line() == {"run": "r", "part": "p"}
    assert line() == {}
