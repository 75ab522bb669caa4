"""A look at a federation from outside its cluster, with a member's eyes: what is said, and whether it is true.

It follows the state as institutions do, keeps every signed specification, and recomputes published models from the base
model and the opened sums, by the hashes alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from fedddpm.config import NetworkOptions
from fedddpm.errors import FedDDPMError
from fedddpm.identity import Identity
from fedddpm.rounds.model_store import ModelStore
from fedddpm.rounds.trust import accept_results
from fedddpm.state.folder import StateFolder
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm_protocol.agreement.model_layout import model_hash
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.phases import Phase

POLL_S = 2.0


class Observer(threading.Thread):
    """Follows a federation until closed; a context manager."""

    def __init__(self, url: str, identity: Path, root: bytes, ca: Path, folder: Path) -> None:
        super().__init__(daemon=True)
        who = Identity.load(identity)
        self._root = root
        options = NetworkOptions(ca_bundle=ca, patience_s=60, poll_s=POLL_S)
        self._following = Connection(url, who, who.member_id, options)
        self._asking = Connection(url, who, who.member_id, options)
        self._state_dir = StateFolder(folder, root, who.member_id)
        self._models = ModelStore(self._state_dir, FederationApi(self._asking), lambda what, now, all_: None)
        self.specs: dict[bytes, RoundSpec] = {}
        self.state: RunState | None = None
        self.failure: Exception | None = None
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.join(60)
        self._state_dir.close()
        self._asking.__exit__(None, None, None)
        self._following.__exit__(None, None, None)

    def run(self) -> None:
        """Follow."""
        transport, version = FederationApi(self._following), 0
        while not self._closing.is_set():
            try:
                state = transport.state(version, POLL_S if version else 0)
            except FedDDPMError as error:
                self.failure = error
                return
            version = state.version
            if state.spec is not None:
                spec = canonical.decode(RoundSpec, state.spec.body)
                self.specs[spec.hash] = spec
            self.state = state

    def until(self, true: Callable[[RunState], bool], what: str, timeout_s: float = 300) -> RunState:
        """The first state that is as asked; AssertionError with the last one seen."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.failure is not None:
                raise self.failure
            if self.state is not None and true(self.state):
                return self.state
            assert time.monotonic() < deadline, (
                f"waited {timeout_s:.0f} s in vain for {what}; the state is {self.state}"
            )
            time.sleep(0.02)

    def until_phase(self, run: str, rounds: range, *phases: Phase) -> RunState:
        """A state in which a session of one of these rounds is in one of ``phases``; quick ones may pass unseen."""

        def reached(state: RunState) -> bool:
            mine = state.run == run and state.round in rounds
            return mine and any(session.phase in phases for session in state.sessions.values())

        return self.until(reached, f"rounds {rounds} of {run} in {[str(phase) for phase in phases]}")

    def until_finished(self, run: str, timeout_s: float = 600) -> None:
        """Wait for the end of a run."""
        self.until(lambda state: (state.run, state.status) == (run, "finished"), f"the end of {run}", timeout_s)

    def roster(self) -> Roster:
        """The newest roster, under the root key."""
        return open_roster(FederationApi(self._asking).roster(), self._root)

    def results(self, run: str) -> list[RoundResult]:
        """The chain of signed results of a run."""
        return accept_results(FederationApi(self._asking).results(run, 0), self.roster(), run, 0, b"")

    def recompute(self, result: RoundResult) -> bytes:
        """The hash of the model that follows from a round's base model and its opened sums; both are fetched anew."""
        spec = self.specs[result.spec_hash]
        base = self._models.fetch_base(spec.base_manifest, result.base_model_hash)
        return model_hash(spec.base_manifest, self._models.derive(spec, result, base).base)
