"""An operator's side of ``/v1/operator``: signed requests from another machine."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import httpx

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.request_signing import message_signer, sign_request
from fedddpm_aggregator.service.runs import RunSettings
from fedddpm_aggregator.shown import shown_url
from fedddpm_protocol.keys import SigningKey
from fedddpm_protocol.messages import SignedDocument

_TIMEOUT_S = 60.0


class OperatorClient:
    """One operator's connection to an aggregator."""

    def __init__(self, url: str, operator: str, key: SigningKey) -> None:
        self._operator = operator
        try:
            self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S)
        except httpx.InvalidURL:  # its words repeat a part of the URL
            raise OperatorError(f"{shown_url(url)!r} is no URL of a server; write https://HOST[:PORT]") from None
        self._signer = message_signer(operator, key)

    def __enter__(self) -> OperatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def start_run(self, settings: RunSettings, initial_model: Path) -> dict[str, Any]:
        """Upload theta_0, as far as it is not there, and start a run."""
        digest = self._upload(initial_model)
        request = {"settings": dataclasses.asdict(settings), "initial_model": digest}
        done: dict[str, Any] = self._send("POST", "/v1/operator/runs", json=request)
        return done

    def steer_run(self, run: str, verb: str) -> dict[str, Any]:
        """Pause, resume or end a run."""
        done: dict[str, Any] = self._send("POST", f"/v1/operator/runs/{run}/{verb}")
        return done

    def install_roster(self, document: SignedDocument) -> dict[str, Any]:
        """Put a root-signed roster in force."""
        done: dict[str, Any] = self._send("POST", "/v1/operator/rosters", json=document.model_dump(mode="json"))
        return done

    def rounds(self, run: str | None = None) -> list[dict[str, Any]]:
        """The sessions of a run, the newest by default."""
        lines: list[dict[str, Any]] = []
        start: int | None = 0
        while start is not None:
            page = self._send("GET", "/v1/operator/rounds", params={"from": start} | ({"run": run} if run else {}))
            lines += page["lines"]
            start = page["next"]
        return lines

    def audit(self) -> list[dict[str, Any]]:
        """The whole audit log."""
        entries: list[dict[str, Any]] = []
        while page := self._send("GET", "/v1/operator/audit", params={"from": len(entries) + 1}):
            entries += page
        return entries

    def _upload(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
            place = f"/v1/operator/models/{digest.hexdigest()}"
            known = self._send("GET", place)
            size = known["chunk_bytes"]
            for index in range(-(-path.stat().st_size // size)):
                if index not in known["stored"]:
                    file.seek(index * size)
                    self._send("PUT", f"{place}/chunks/{index}", content=file.read(size))
        return digest.hexdigest()

    def _send(self, method: str, path: str, **fields: Any) -> Any:
        request = self._http.build_request(method, path, **fields)
        sign_request(self._signer, self._operator, request)
        try:
            response = self._http.send(request)
        except httpx.TransportError as error:
            raise OperatorError(
                f"the aggregator at {shown_url(str(self._http.base_url))} does not answer: {error}"
            ) from error
        if response.is_success:
            return response.json() if response.content else None
        raise OperatorError(_reason(response))


def _reason(response: httpx.Response) -> str:
    try:
        document = response.json()
        return f"the aggregator refused ({document['code']}): {document['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"the aggregator answered with status {response.status_code} and no reason"
