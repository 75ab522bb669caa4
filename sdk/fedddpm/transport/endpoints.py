"""The aggregator's HTTP interface, one method per endpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from fedddpm.transport.connection import Connection
from fedddpm.transport.replies import BytesSoFar
from fedddpm.transport.traffic import Traffic
from fedddpm_protocol.wire.api import (
    CohortReply,
    JoinReceipt,
    ResultsPage,
    RunState,
    ShareInbox,
    UploadDigests,
    UploadStatus,
)
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import (
    Accusation,
    Confirmation,
    Confirmations,
    Join,
    Shares,
    SignedDocument,
    Survivors,
    Unmask,
    Unmasks,
    UploadManifest,
)

_FILE_OVERHEAD = 2**20  # names and shapes beside the numbers of a safetensors file


def _ignore(have: int, total: int) -> None:
    """Nobody watches this download."""


class SessionApi:
    """The endpoints of one session: one part of one attempt."""

    def __init__(self, connection: Connection, spec_hash: bytes, part: str) -> None:
        self._connection = connection
        self._path = f"/v1/sessions/{spec_hash.hex()}/{quote(part, safe='')}"

    def join(self, join: Join) -> JoinReceipt:
        """Offer fresh session keys."""
        return self._connection.ask(JoinReceipt, f"{self._path}/joins", join)

    def cohort(self) -> CohortReply:
        """Everybody's JOIN, once the cohort is closed."""
        return self._connection.get(CohortReply, f"{self._path}/cohort")

    def post_shares(self, shares: Shares) -> None:
        """Give own sealed shares, one for each other member."""
        self._connection.post(f"{self._path}/shares", shares)

    def accuse(self, accusation: Accusation) -> None:
        """Show that shares are not what their dealers committed to."""
        self._connection.post(f"{self._path}/accusations", accusation)

    def share_inbox(self) -> ShareInbox:
        """Sealed shares addressed to this institution."""
        return self._connection.get(ShareInbox, f"{self._path}/shares")

    def put_chunk(self, segment: str, index: int, data: bytes, parameters: int) -> None:
        """Upload one masked chunk that carries ``parameters`` coordinates of the model."""
        self._connection.put(f"{self._path}/chunks/{quote(segment, safe='')}/{index}", data)
        self._connection.meter.add(Traffic(parameters_up=parameters, payload_up=len(data)))

    def upload_status(self) -> UploadStatus:
        """Which chunks have arrived."""
        return self._connection.get(UploadStatus, f"{self._path}/upload")

    def complete_upload(self, manifest: UploadManifest) -> None:
        """Say that the upload is whole."""
        self._connection.post(f"{self._path}/upload", manifest)

    def survivors(self) -> Survivors:
        """Whose uploads arrived."""
        return self._connection.get(Survivors, f"{self._path}/survivors")

    def confirm(self, confirmation: Confirmation) -> None:
        """Sign the survivor set."""
        self._connection.post(f"{self._path}/confirmations", confirmation)

    def confirmations(self) -> Confirmations:
        """Everybody's confirmations."""
        return self._connection.get(Confirmations, f"{self._path}/confirmations")

    def unmask(self, unmask: Unmask) -> None:
        """Give the one answer; returns when the aggregator has it on its disk."""
        self._connection.post(f"{self._path}/unmask", unmask)

    def unmasks(self) -> Unmasks:
        """The answers that a published sum was opened with."""
        return self._connection.get(Unmasks, f"{self._path}/unmasks")

    def upload_digests(self, member: str) -> UploadDigests:
        """The chunk digests of another survivor of a published sum."""
        return self._connection.get(UploadDigests, f"{self._path}/uploads/{quote(member, safe='')}")

    def masked_chunk(self, member: str, segment: str, index: int, size: int) -> bytes:
        """One masked chunk of ``size`` bytes of a survivor of a published sum; the caller checks its digest."""
        path = f"{self._path}/uploads/{quote(member, safe='')}/{quote(segment, safe='')}/{index}"
        return self._connection.fetch(path, size)


class FederationApi:
    """The endpoints outside sessions."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def session(self, spec_hash: bytes, part: str) -> SessionApi:
        """The endpoints of one session."""
        return SessionApi(self.connection, spec_hash, part)

    def roster(self) -> SignedDocument:
        """The newest signed roster."""
        return self.connection.get(SignedDocument, "/v1/roster")

    def state(self, after: int, wait_s: float) -> RunState:
        """Where the run stands; returns when its version is above ``after``, or after ``wait_s`` seconds."""
        return self.connection.poll(RunState, "/v1/state", {"after": after}, wait_s)

    def evidence(self, sha256: str) -> Evidence:
        """What convicts a member; the caller checks it."""
        return self.connection.get(Evidence, f"/v1/evidence/{sha256}")

    def results(self, run: str, first_round: int) -> tuple[SignedDocument, ...]:
        """Signed results from ``first_round`` on, in order, at most a hundred."""
        return self.connection.get(ResultsPage, "/v1/results", {"run": run, "from": first_round}).results

    def download_model(self, model_hash: bytes, target: Path, parameters: int, on_bytes: BytesSoFar = _ignore) -> None:
        """Fetch a model of ``parameters`` coordinates as safetensors; the caller checks its hash."""
        most = 4 * parameters + _FILE_OVERHEAD
        self._download(f"/v1/models/{model_hash.hex()}", target, parameters, most, on_bytes)

    def download_opened(
        self, run: str, round_: int, part: str, target: Path, parameters: int, on_bytes: BytesSoFar = _ignore
    ) -> None:
        """Fetch the opened ring vector of one part; the caller checks the model that follows from it."""
        path = f"/v1/results/{quote(run, safe='')}/{round_}/opened/{quote(part, safe='')}"
        self._download(path, target, parameters, 8 * parameters, on_bytes)

    def _download(self, path: str, target: Path, parameters: int, most_bytes: int, on_bytes: BytesSoFar) -> None:
        self.connection.download(path, target, most_bytes, on_bytes)
        size = target.stat().st_size
        self.connection.meter.add(Traffic(parameters_down=parameters, payload_down=size))
