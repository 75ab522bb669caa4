"""Checks published sums before anything is trained on them: fetches what some chunks were made of, and opens them.

A false sum ends this institution's part in the run, with a proof in the state folder. What cannot be checked is said
and counted, and ends it only where the policy says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from fedddpm.config import LocalPolicyOptions
from fedddpm.errors import PolicyError, TransportError
from fedddpm.monitoring.reporter import Reporter
from fedddpm.rounds.model_store import ModelStore
from fedddpm.state.confirmed_sums import ConfirmedSums
from fedddpm.state.evidence import keep_proof
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport.endpoints import FederationApi, SessionApi
from fedddpm.transport.problems import UnreachableError
from fedddpm_protocol.agreement.chunks import chunk_bytes
from fedddpm_protocol.agreement.documents import open_result, open_spec
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.roster import Roster, open_roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import FalseSumError, MalformedError, PeerProtocolError
from fedddpm_protocol.session.checked_sum import (
    CheckedSum,
    check_shown,
    confirmed_survivors,
    draw_chunks,
    published_sum,
    require_confirmed,
)
from fedddpm_protocol.session.cohort import SurvivorSet
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum, FalseSum, ShownSum

_CALL = "Stop, and give that file to the federation's coordinator and to the other institutions"


class FalseSumFoundError(PolicyError):
    """The aggregator signed a sum that is not that of what the institutions sent."""


@dataclass(frozen=True)
class SumChecked:
    """What was opened again of one sum; ``chunks`` from 0."""

    chunks: tuple[int, ...]
    of: int
    bytes: int  # masked words fetched for it

    def __str__(self) -> str:
        what = f"chunk {self.chunks[0] + 1}" if len(self.chunks) == 1 else f"{len(self.chunks) or 'no'} chunks"
        return f"{what} of {self.of}, {self.bytes / 1e6:.1f} MB"


class SumCheck:
    """The check of the newest result of a run; may be asked for at any time, and does each once."""

    def __init__(
        self,
        state: StateFolder,
        transport: FederationApi,
        models: ModelStore,
        member: str,
        root: bytes,
        policy: LocalPolicyOptions,
        reporter: Reporter,
    ) -> None:
        self._state, self._transport, self._models = state, transport, models
        self._member, self._root, self._policy, self._reporter = member, root, policy, reporter
        self._sums = ConfirmedSums(state)
        self._last: tuple[bytes, Mapping[str, SumChecked]] = (b"", {})

    def after(self, position: RunPosition) -> None:
        """Check the sums of the result at ``position`` in which this institution is.

        Raises:
            FalseSumFoundError: one of them is false, now or earlier in the run.
            PolicyError: one could not be checked, and the policy's ``require_checks`` is set.
        """
        found = self._sums.false_sum(position.run)
        if found is not None:
            raise FalseSumFoundError(f"run {position.run} is not taken part in any more: {found}", _CALL)
        if not position.last_result or not self._policy.check_sums or self._sums.is_checked(position.last_result):
            return
        checked: dict[str, SumChecked] = {}
        try:
            document, result = self._result(position)
            for part in result.parts:
                confirmed = self._confirmed(result, part)
                if confirmed is not None:
                    checked[part.part] = self._check(document, result, part, *confirmed)
        except UnreachableError:
            raise  # it is away; the check is made at the next start
        except (TransportError, PeerProtocolError) as error:
            self._not_checked(position, error)
        self._sums.remember_checked(position.last_result)
        self._last = (position.last_result, checked)

    def of(self, result: RoundResult) -> Mapping[str, SumChecked]:
        """What was checked of a result by this process, by session."""
        return self._last[1] if self._last[0] == result.hash else {}

    def _result(self, position: RunPosition) -> tuple[SignedDocument, RoundResult]:
        """The signed result at ``position``, as it was taken."""
        documents = self._transport.results(position.run, position.next_round - 1)
        newest = self._state.roster_document
        if not documents or newest is None:
            raise MalformedError("the aggregator shows no such result any more", "aggregator")
        result = open_result(documents[0], open_roster(newest, self._root))
        if result.hash != position.last_result:
            raise MalformedError("the aggregator shows another result than before", "aggregator")
        return documents[0], result

    def _confirmed(self, result: RoundResult, part: PartResult) -> tuple[ConfirmedSum, RoundSpec, Roster] | None:
        """What was confirmed here for this sum, and under what; None where this institution is in no such sum."""
        confirmed = self._sums.of(part.part) if part.opened else None
        if confirmed is not None:
            spec = open_spec(confirmed.spec, agreed := open_roster(confirmed.roster, self._root))
            if spec.hash == result.spec_hash:
                return confirmed, spec, agreed
        if self._member in part.survivors:
            self._reporter.sum_not_checked(
                f"the sum of part {part.part} of round {result.round + 1} is not checked: what this institution"
                " confirmed is not on record here"
            )
        return None

    def _check(
        self,
        document: SignedDocument,
        result: RoundResult,
        part: PartResult,
        confirmed: ConfirmedSum,
        spec: RoundSpec,
        agreed: Roster,
    ) -> SumChecked:
        survivors = confirmed_survivors(confirmed, agreed, spec)
        proof = FalseSum(confirmed=confirmed, result=document)
        try:
            require_confirmed(survivors, published_sum(result, spec, part.part))
        except FalseSumError as error:
            raise self._false(result, part, proof, error) from error
        api = self._transport.session(spec.hash, part.part)
        shown = self._shown(api, spec, result, part, survivors)
        checked = check_shown(survivors, part, shown)
        chosen = self._draw(result, part.part, checked)
        moved = 0
        for segment, index in ((checked.weights, 0), *((checked.values, index) for index in chosen)):
            words = self._words(api, spec, part, survivors, segment, index)
            moved += sum(map(len, words.values()))
            self._reporter.transfer(f"checking the sum of {part.part}", moved, 0)
            try:
                checked.require_chunk(segment, index, words)
            except FalseSumError as error:
                update = {"shown": shown, "segment": segment, "index": index, "words": words}
                raise self._false(result, part, proof.model_copy(update=update), error) from error
        done = SumChecked(chosen, checked.chunks, moved)
        self._reporter.sum_checked(
            f"round {result.round + 1}: sum of part {part.part} checked: {done}",
            {"part": part.part, "chunks": chosen, "of": done.of, "bytes": moved},
        )
        return done

    def _shown(
        self, api: SessionApi, spec: RoundSpec, result: RoundResult, part: PartResult, survivors: SurvivorSet
    ) -> ShownSum:
        return ShownSum(
            unmasks=api.unmasks().unmasks,
            uploads={member: api.upload_digests(member).chunks for member in survivors.ids},
            opened=self._models.opened_digests(spec, result, part),
        )

    def _draw(self, result: RoundResult, session: str, checked: CheckedSum) -> tuple[int, ...]:
        """The chunks to check: drawn once for a result, after it was signed."""
        drawn = self._sums.draw(result.hash, session)
        if drawn is None:
            members = len(checked.survivors.ids)
            drawn = draw_chunks(checked.chunks, members, self._policy.check_sums, secrets.randbelow)
            self._sums.remember_draw(result.hash, session, drawn)
        return drawn

    @staticmethod
    def _words(
        api: SessionApi, spec: RoundSpec, part: PartResult, survivors: SurvivorSet, segment: str, index: int
    ) -> dict[str, bytes]:
        agreed = survivors.sharing.cohort.plan.segment(segment)
        size = chunk_bytes(agreed, spec.chunk_coordinates, index)
        return {member: api.masked_chunk(member, segment, index, size) for member in survivors.ids}

    def _false(
        self, result: RoundResult, part: PartResult, proof: FalseSum, error: FalseSumError
    ) -> FalseSumFoundError:
        """Keep the proof, and that this run is over for this institution."""
        name = f"false-sum-{result.run}-{result.round + 1}-{part.part}.json"
        path = keep_proof(self._state.path, name, proof)
        what = f"{error}, in round {result.round + 1}. The proof, which fedddpm check-evidence verifies, is {path}"
        self._sums.remember_false(result.run, what)
        return FalseSumFoundError(f"the aggregator published a false sum: {what}", _CALL)

    def _not_checked(self, position: RunPosition, error: TransportError | PeerProtocolError) -> None:
        why = error.happened if isinstance(error, TransportError) else str(error)
        text = f"the sum of round {position.next_round} could not be checked: {why}"
        if self._policy.require_checks:
            raise PolicyError(
                f"{text}; the policy wants every sum checked (require_checks). Nothing more was sent",
                "Ask the coordinator why the aggregator does not show what it summed, then start again; or take"
                " require_checks out of the policy, and take the sums of this aggregator on trust",
            ) from error
        self._reporter.sum_not_checked(text)
