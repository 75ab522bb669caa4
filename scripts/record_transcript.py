"""Record a round as institutions of this version live it: `python scripts/record_transcript.py FOLDER`.

FOLDER then holds the aggregator's key, its database as SQL and its blobs at the start of the round, and every exchange
as JSON lines. tests/aggregator/api/test_stored_transcripts.py replays such folders against the aggregator as it is
now, so that institutions of earlier versions go on working. Record one with each release, never change an old one.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import sys
import tempfile
import types
from pathlib import Path

import httpx

_TESTS = types.ModuleType("tests")  # another distribution may have installed a package of this name
_TESTS.__path__ = [str(Path(__file__).parents[1] / "tests")]
sys.modules["tests"] = _TESTS

from tests.aggregator.support.driver import Institution, ProblemError, drive, take_seats  # noqa: E402
from tests.aggregator.support.federations import Federation, identity_of  # noqa: E402

from fedddpm_aggregator.selftest.serving import served_here  # noqa: E402

TALKERS = ("a", "b", "c", "d")
SETTINGS = {"rounds": 2, "bits": 16, "first_bits": 24, "chunk_coordinates": 128, "masked_s": 6.0}


class Recorder:
    """Keeps what institutions sent and what came back."""

    def __init__(self) -> None:
        self.exchanges: list[dict[str, object]] = []

    def listen(self, institution: Institution) -> None:
        """Record everything that ``institution`` sends from now on."""
        institution.http.event_hooks = {"response": [lambda response: self._keep(institution.name, response)]}

    def _keep(self, member: str, response: httpx.Response) -> None:
        request, content = response.request, response.read()
        kind = response.headers.get("content-type", "")
        self.exchanges.append(
            {
                "member": member,
                "method": request.method,
                "target": request.url.raw_path.decode(),
                "request_type": request.headers.get("content-type", ""),
                "request": base64.b64encode(request.content).decode(),
                "status": response.status_code,
                "type": kind,
                "reply": json.loads(content) if "json" in kind and content else base64.b64encode(content).decode(),
            }
        )


def record(folder: Path) -> None:
    """A round with a member that goes away after sharing its keys, and with things that are refused."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        federation = Federation(Path(scratch), members=TALKERS)
        federation.start_run(**SETTINGS)
        with served_here(federation.settings) as url:  # makes the first attempt
            wait_for_round(url)
        _keep_start(federation, folder)
        recorder = Recorder()
        with served_here(federation.settings) as url:
            talk(url, federation, recorder)
    with (folder / "transcript.jsonl").open("w") as file:
        file.writelines(json.dumps(exchange) + "\n" for exchange in recorder.exchanges)


def wait_for_round(url: str) -> None:
    """Until the server has made the specification of the first round."""
    institution = Institution(url, "a", identity_of("a"))
    state = institution.state()
    while state.spec is None:
        state = institution.state(state.version, 2.0)
    institution.close()


def talk(url: str, federation: Federation, recorder: Recorder) -> None:
    """One round by four institutions, recorded."""
    institutions = {name: Institution(url, name, identity_of(name)) for name in TALKERS}
    for institution in institutions.values():
        recorder.listen(institution)
    one = institutions["a"]
    state = one.state()
    one.send("GET", "/v1/roster")
    seats = take_seats(institutions.values(), federation.roster, state, "decoder")
    spec = seats[0].spec
    one.send("GET", f"/v1/models/{spec.initial_model_hash.hex()}")
    one.send("GET", f"/v1/models/{spec.base_model_hash.hex()}")
    refused(one, "GET", f"/v1/models/{'00' * 32}")
    refused(one, "GET", f"{seats[0].path}/survivors")
    drive(seats, ("join",))
    refused(one, "POST", f"{seats[0].path}/joins", seats[1].join_message)
    drive(seats, ("share",))
    staying = seats[:3]
    refused(one, "PUT", f"{seats[0].path}/chunks/decoder/0", b"short")
    drive(staying, ("upload",))
    one.send("GET", f"{seats[0].path}/upload")
    drive(staying, ("confirm", "unmask"))
    state = one.state()
    while not state.results:
        state = one.state(state.version, 2.0)
    one.send("GET", "/v1/results?run=run-1&from=0")
    one.send("GET", "/v1/results/run-1/0/opened/decoder")
    refused(one, "POST", f"{seats[0].path}/joins", seats[0].join_message.model_copy(update={"body": b"x"}))
    for institution in institutions.values():
        institution.close()


def refused(institution: Institution, method: str, path: str, message: object = None) -> None:
    """Send what the aggregator must refuse."""
    try:
        institution.send(method, path, message)  # type: ignore[arg-type]
    except ProblemError:
        return
    raise RuntimeError(f"{method} {path} was not refused")


def _keep_start(federation: Federation, folder: Path) -> None:
    data = federation.settings.data
    shutil.copy(data / "server.key", folder)
    shutil.copytree(data / "blobs" / "models", folder / "models")
    with sqlite3.connect(data / "aggregator.sqlite") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        lines = [
            line
            for line in database.iterdump()
            if not line.startswith(('INSERT INTO "leases"', 'INSERT INTO "nonces"'))
        ]
        (folder / "database.sql").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
