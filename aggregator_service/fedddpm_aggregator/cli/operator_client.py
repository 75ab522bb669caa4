"""An operator's side of ``/v1/operator``: signed requests from another machine."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from fedddpm_aggregator.api.operators import AuditEntry, Done, IncomingModel, RoundsPage
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.client_signing import message_signer, sign_request
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.untrusted.redaction import shown_url
from fedddpm_protocol.wire.api import Problem
from fedddpm_protocol.wire.messages import SignedDocument

_TIMEOUT_S = 60.0
MOST_REPLY_BYTES = 64 * 2**20  # sessions of 50 attempts with thousands of members
_DONE, _INCOMING, _ROUNDS = TypeAdapter(Done), TypeAdapter(IncomingModel), TypeAdapter(RoundsPage)
_AUDIT = TypeAdapter(list[AuditEntry])


class OperatorClient:
    """One operator's connection to an aggregator."""

    def __init__(self, url: str, operator: str, key: SigningKey) -> None:
        self._operator = operator
        try:
            self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers={"Accept-Encoding": "identity"})
        except httpx.InvalidURL:  # its words repeat a part of the URL
            raise OperatorError(f"{shown_url(url)!r} is no URL of a server; write https://HOST[:PORT]") from None
        self._signer = message_signer(operator, key)

    def __enter__(self) -> OperatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def start_run(self, charter: SignedDocument, durations: OperatorSettings, initial_model: Path) -> dict[str, Any]:
        """Upload theta_0, as far as it is not there, and start the run of a charter."""
        digest, signed = self._upload(initial_model), charter.model_dump(mode="json")
        request = {"charter": signed, "durations": dataclasses.asdict(durations), "initial_model": digest}
        done: dict[str, Any] = self._ask(_DONE, "POST", "/v1/operator/runs", json=request)
        return done

    def steer_run(self, run: str, verb: str) -> dict[str, Any]:
        """Pause, resume or end a run."""
        done: dict[str, Any] = self._ask(_DONE, "POST", f"/v1/operator/runs/{quote(run, safe='')}/{verb}")
        return done

    def install_roster(self, document: SignedDocument) -> dict[str, Any]:
        """Put a root-signed roster in force."""
        sent = document.model_dump(mode="json")
        done: dict[str, Any] = self._ask(_DONE, "POST", "/v1/operator/rosters", json=sent)
        return done

    def rounds(self, run: str | None = None) -> list[dict[str, Any]]:
        """The sessions of a run, the newest by default."""
        lines: list[dict[str, Any]] = []
        start: int | None = 0
        while start is not None:
            asked = {"from": start} | ({"run": run} if run else {})
            page = self._ask(_ROUNDS, "GET", "/v1/operator/rounds", params=asked)
            lines += page["lines"]
            if page["next"] is not None and page["next"] <= start:
                raise OperatorError("the aggregator's pages of rounds lead back; compare the versions")
            start = page["next"]
        return lines

    def audit(self) -> list[dict[str, Any]]:
        """The whole audit log."""
        entries: list[dict[str, Any]] = []
        while page := self._ask(_AUDIT, "GET", "/v1/operator/audit", params={"from": len(entries) + 1}):
            entries += page
        return entries

    def _upload(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
            place = f"/v1/operator/models/{digest.hexdigest()}"
            known = self._ask(_INCOMING, "GET", place)
            stored, size = set(known["stored"]), known["chunk_bytes"]
            for index in range(-(-path.stat().st_size // size)):
                if index not in stored:
                    file.seek(index * size)
                    self._send("PUT", f"{place}/chunks/{index}", content=file.read(size))
        return digest.hexdigest()

    def _ask(self, kind: TypeAdapter[Any], method: str, path: str, **fields: Any) -> Any:
        """A request with a JSON answer of a kind, as JSON; OperatorError where something else came."""
        try:
            return kind.dump_python(kind.validate_json(self._send(method, path, **fields)), mode="json")
        except ValidationError:
            raise OperatorError(f"the aggregator's answer makes no sense ({path}); compare the versions") from None

    def _send(self, method: str, path: str, **fields: Any) -> bytes:
        """The content of the answer; OperatorError for a refusal, for none, and for more than any answer has."""
        request = self._http.build_request(method, path, **fields)
        sign_request(self._signer, self._operator, request)
        content = bytearray()
        try:
            response = self._http.send(request, stream=True)
            with contextlib.closing(response):
                for piece in response.iter_raw():
                    content += piece
                    if len(content) > MOST_REPLY_BYTES:
                        raise OperatorError(f"the aggregator answers with more than {MOST_REPLY_BYTES} bytes")
        except (httpx.TransportError, ValueError, OverflowError) as error:  # the latter for a head without sense
            raise OperatorError(
                f"the aggregator at {shown_url(str(self._http.base_url))} does not answer: {error}"
            ) from error
        if response.is_success:
            return bytes(content)
        raise OperatorError(_reason(response.status_code, bytes(content)))


def _reason(status: int, content: bytes) -> str:
    try:
        document = Problem.model_validate_json(content)
    except ValidationError:
        return f"the aggregator answered with status {status} and no reason"
    return f"the aggregator refused ({document.code}): {document.detail}"
