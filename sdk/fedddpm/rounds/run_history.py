"""Where this institution stands in a run: the chain of signed results, and the base model that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus

from fedddpm.config import LearningOptions, LocalPolicyOptions
from fedddpm.errors import CheckpointError, ModelError, PolicyError
from fedddpm.model.ema import AverageState
from fedddpm.model.initialization import initial_network
from fedddpm.model.partition import flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm.monitoring.reporter import Reporter
from fedddpm.rounds.model_store import ModelStore, model_file, require_known_parts
from fedddpm.rounds.rollback_check import UnknownGroundError, WentBackError
from fedddpm.rounds.trust import accept_results
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import ProblemError
from fedddpm.updates.adoption import adopt_round, replace_parts
from fedddpm.updates.local_update import LocalUpdate, local_parts
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.lineage import NO_RESULTS, Lineage, require_follows
from fedddpm_protocol.agreement.methods import Method, part_of
from fedddpm_protocol.agreement.model_layout import Manifest, Vector, coordinates, model_hash
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import NextModel
from fedddpm_protocol.encoding.outer import with_mean
from fedddpm_protocol.encoding.rederivation import follow_fetched
from fedddpm_protocol.errors import ResultError, SpecError
from fedddpm_protocol.primitives.ring import packed_bytes

_FLOAT32_BYTES = 4


class RunHistory:
    """Moves the position forward, never back; ``learning`` and ``policy`` are the institution's own settings.

    ``followed`` is told of verified results before anything is done with them; some may come a second time.
    """

    def __init__(
        self,
        state: StateFolder,
        models: ModelStore,
        transport: FederationApi,
        reporter: Reporter,
        followed: Callable[[Sequence[RoundResult]], None],
        learning: LearningOptions,
        policy: LocalPolicyOptions,
    ) -> None:
        self._state, self._models, self._transport, self._reporter = state, models, transport, reporter
        self._followed, self._policy, self._averaging = followed, policy, bool(learning.ema_decay)

    def arrive(self, spec: RoundSpec, charter: Charter, roster: Roster) -> RunPosition:
        """The position at the start of ``spec``'s round, with its base model at hand.

        Raises:
            WentBackError: the aggregator went back; UnknownGroundError: it builds on a result not known here.
            CharterError: it is not what follows from the charter and the results.
            ModelError, ResultError: what it sent is not what it signed.
        """
        position = self._state.position(spec.run)
        if position is None:
            return self._first_contact(spec, charter, roster)
        if spec.round < position.next_round or position.finished:
            raise WentBackError(
                f"the aggregator went back to round {spec.round + 1} of run {spec.run}; this institution has finished"
                f" round {position.next_round}",
                "It was perhaps restored from an old backup: its operator must start a new run; rounds never go back",
            )
        if spec.method != position.method:  # the same update in sums of other parts: their difference would tell
            raise SpecError(f"run {spec.run} was {position.method} and is now {spec.method}", "aggregator")
        claimed = (spec.round, spec.previous_result, spec.base_model_hash, spec.initial_model_hash)
        known = (position.next_round, position.last_result, position.base_model_hash, position.initial_model_hash)
        if claimed != known:
            raise UnknownGroundError(
                f"round {spec.round + 1} does not build on the result of round {position.next_round} known here",
                "aggregator",
            )
        require_follows(spec, charter, position.lineage, roster)
        return position

    def rounds_done(self, position: RunPosition, roster: Roster) -> int:
        """How many rounds of a run have results, those that were not taken here included."""
        results = self._results(position.run, position.next_round, position.last_result, roster)
        return results[-1].round + 1 if results else position.next_round

    def network(self, position: RunPosition, spec: RoundSpec) -> UNet:
        """The institution's network at the start of the round; fetched again where the file was lost."""
        model = self._models.load(position)
        if model is None:
            self._reporter.warning("the stored network is missing or damaged and is fetched again")
            model = self._fetch(spec)
            self._models.keep(model, position, self._fresh(model), self._fetched(model, position))
        return model

    def base(self, position: RunPosition, model: UNet) -> Vector:
        """The base model at ``position`` [coordinates of the shared parts], where ``model`` is the network."""
        return self._models.base(model, position)

    def average(self, position: RunPosition, model: UNet) -> AverageState | None:
        """The average that belongs to ``model``, the network at ``position``; None where none is kept.

        One that was lost begins again: it only decides how good images look, not what anybody is sent.
        """
        if not self._averaging:
            return None
        average = self._models.load_average(model, position)
        if average is None:
            self._reporter.warning("the stored average of the weights is missing or damaged: it begins again with them")
        return average or self._fresh(model)

    def advance(
        self,
        position: RunPosition,
        roster: Roster,
        known: Mapping[bytes, RoundSpec],
        update: LocalUpdate | None,
        rounds: int,
        moved: Callable[[RoundResult, Vector, Vector], None],
    ) -> list[RoundResult]:
        """Take the results after ``position``; returns those that were new.

        A result whose specification is ``known`` is followed by its opened sums; otherwise the newest base model is
        fetched whole. Local parts trained on the position's base model come along. ``moved`` is told of a single
        result, with the shared parts before and after it, before the position is left.
        """
        results = self._results(position.run, position.next_round, position.last_result, roster)
        if not results:
            return []
        model = self._models.load(position)
        if model is None:
            self._reporter.warning("the stored network is missing or damaged")
            self._go_on_without(position, results, rounds, known)
            return results
        base = self._models.base(model, position)
        following, results = self._newest_base(model, position, results, roster, known)
        if len(results) == 1:
            moved(results[0], base, _with_mean(known.get(results[0].spec_hash), base, following))
        average = self.average(position, model) if update is None else None
        reached, method = _after(position, results, rounds), Method(position.method)
        summed = {part_of(part.part) for result in results for part in result.parts}
        if reached.finished:  # parts that take turns come home, too: the run ends with one network everywhere
            summed = set(method.sessions)
        average = adopt_round(model, method, following.base, update, average, summed)
        self._models.keep(model, reached, average if self._averaging and average else self._fresh(model), following)
        return results

    def _go_on_without(
        self, position: RunPosition, results: Sequence[RoundResult], rounds: int, known: Mapping[bytes, RoundSpec]
    ) -> None:
        """Take a position without a network: the next round fetches it whole; after the last one it is fetched now."""
        reached, spec = _after(position, results, rounds), known.get(results[-1].spec_hash)
        if not reached.finished or spec is None:
            return self._state.move_to(reached)
        model = self._with_base(spec, reached.base_model_hash)
        return self._models.keep(model, reached, self._fresh(model))

    def _newest_base(
        self,
        model: UNet,
        position: RunPosition,
        results: list[RoundResult],
        roster: Roster,
        known: Mapping[bytes, RoundSpec],
    ) -> tuple[NextModel, list[RoundResult]]:
        """What follows from the last of ``results``, and these with those that came while it was fetched.

        Where rounds are short and the link is slow, a model can be kept no longer before it has arrived.
        """
        while True:
            last = results[-1]
            try:
                spec = known.get(last.spec_hash) if len(results) == 1 else None
                return self._next_base(model, position, last, spec), results
            except ProblemError as problem:
                gone = problem.status == HTTPStatus.GONE
                newer = self._results(position.run, last.round + 1, last.hash, roster) if gone else []
                if not newer:
                    raise
                results = [*results, *newer]

    def _fresh(self, model: UNet) -> AverageState | None:
        return AverageState.fresh(model) if self._averaging else None

    def _next_base(self, model: UNet, position: RunPosition, last: RoundResult, spec: RoundSpec | None) -> NextModel:
        """What follows from ``last``: derived from that in ``model`` where its ``spec`` is known, else downloaded.

        The sums of several shards can be larger together than the model that follows from them: then that is fetched,
        and also where the aggregator keeps these sums no longer. It must be within reach of clipped updates then.
        """
        shared = manifest(model, Method(position.method).shared_parts)
        if spec is None:
            fetched = self._models.fetch_base(shared, last.model_hash)
            same = last.averaged_hash == last.model_hash
            return NextModel(fetched, fetched if same else self._fetched_averaged(shared, last.averaged_hash), {})
        if last.base_model_hash != position.base_model_hash:
            raise ResultError(f"the result of round {last.round} is over another base model", "aggregator")
        require_known_parts(spec, last)
        base, averaged = self._models.base(model, position), self._averaged(model, position)
        if _opened_bytes(spec, last) <= _FLOAT32_BYTES * coordinates(spec.base_manifest):
            try:
                return self._models.derive(spec, last, base, averaged)
            except ProblemError as problem:
                if problem.status != HTTPStatus.GONE:
                    raise
        fetched = self._models.fetch_base(shared, last.averaged_hash if spec.outer.momentum else last.model_hash)
        return follow_fetched(spec, last, base, fetched, averaged)

    def _averaged(self, model: UNet, position: RunPosition) -> Vector | None:
        """The averaged model at ``position``; fetched again where its file was lost: its hash is signed."""
        try:
            return self._models.averaged(model, position)
        except (CheckpointError, ModelError):
            self._reporter.warning("the stored averaged model is missing or damaged and is fetched again")
            shared = manifest(model, Method(position.method).shared_parts)
            return self._models.fetch_base(shared, position.lineage.averaged_hash)

    def _fetched(self, model: UNet, position: RunPosition) -> NextModel | None:
        """What lies beside ``model``, the network at ``position`` as it was fetched; None without outer momentum."""
        shared = Method(position.method).shared_parts
        averaged = self._fetched_averaged(manifest(model, shared), position.lineage.averaged_hash)
        return None if averaged is None else NextModel(flatten(model, shared), averaged, {})

    def _fetched_averaged(self, shared: Manifest, wanted: bytes) -> Vector | None:
        return self._models.fetch_base(shared, wanted) if wanted else None

    def _first_contact(self, spec: RoundSpec, charter: Charter, roster: Roster) -> RunPosition:
        previous, lineage = b"", NO_RESULTS
        if spec.round:
            results = self._results(spec.run, 0, b"", roster)
            last = next((result for result in results if result.round == spec.round - 1), None)
            if last is None or (last.hash, last.model_hash) != (spec.previous_result, spec.base_model_hash):
                raise UnknownGroundError(
                    f"round {spec.round + 1} does not build on the published results", "aggregator"
                )
            previous = last.hash
            lineage = _grown(lineage, results[: spec.round])
        require_follows(spec, charter, lineage, roster)
        position = RunPosition(
            run=spec.run,
            method=spec.method,
            next_round=spec.round,
            last_result=previous,
            initial_model_hash=spec.initial_model_hash,
            base_model_hash=spec.base_model_hash,
            model_file=model_file(spec.run, spec.round),
            lineage=lineage,
        )
        model = self._fetch(spec)
        self._models.keep(model, position, self._fresh(model), self._fetched(model, position))
        return position

    def _fetch(self, spec: RoundSpec) -> UNet:
        """theta_0 where parts stay local or the run begins, and the base model where it has moved on."""
        if spec.round:
            return self._with_base(spec, spec.base_model_hash)
        model = self._first_network(spec)
        if spec.base_model_hash != self._models.base_hash(model, Method(spec.method)):
            raise SpecError("the first round's base model is not the shared part of the first model", "aggregator")
        return model

    def _with_base(self, spec: RoundSpec, base: bytes) -> UNet:
        """The network of a base model (by its hash), with theta_0 where parts stay local."""
        method = Method(spec.method)
        model = self._first_network(spec) if local_parts(method) else UNet.from_architecture(spec.architecture)
        replace_parts(model, method.shared_parts, self._models.fetch_base(spec.base_manifest, base))
        return model

    def _first_network(self, spec: RoundSpec) -> UNet:
        """theta_0: from its seed where it has one, else downloaded; its hash is the one in ``spec`` either way.

        Raises:
            PolicyError: it does not follow from its seed, and the policy does not allow weights.
        """
        if spec.initial_seed:
            model = initial_network(spec.architecture, spec.initial_seed)
            if model_hash(manifest(model), flatten(model)) == spec.initial_model_hash:
                return model
            if not self._policy.allow_weights:
                raise PolicyError(
                    "the first model does not follow from the seed that stands in the specification: somebody changed"
                    " it after init-model, or the versions differ",
                    "Tell the coordinator; if you know where these weights come from, set allow_weights",
                )
            self._reporter.warning(
                "the first model does not follow from the seed that stands in the specification, so it is downloaded;"
                " tell the coordinator: the file was changed after init-model, or the versions differ"
            )
        return self._models.fetch_initial(spec)

    def _results(self, run: str, first_round: int, previous: bytes, roster: Roster) -> list[RoundResult]:
        """All results from ``first_round`` on, their signatures and chain verified."""
        found: list[RoundResult] = []
        while page := self._transport.results(run, first_round):
            checked = accept_results(page, roster, run, first_round, previous)
            found += checked
            first_round, previous = checked[-1].round + 1, checked[-1].hash
        if found:
            self._followed(found)
        return found


def _after(position: RunPosition, results: Sequence[RoundResult], rounds: int) -> RunPosition:
    """The position after these results, of a run of so many rounds."""
    last = results[-1]
    return replace(
        position,
        next_round=last.round + 1,
        last_result=last.hash,
        base_model_hash=last.model_hash,
        model_file=model_file(position.run, last.round + 1),
        finished=last.round + 1 >= rounds,
        lineage=_grown(position.lineage, results),
    )


def _grown(lineage: Lineage, results: Iterable[RoundResult]) -> Lineage:
    for result in results:
        lineage = lineage.after(result)
    return lineage


def _with_mean(spec: RoundSpec | None, base: Vector, following: NextModel) -> Vector:
    """The base model and the mean update alone, without what an outer optimizer made of them.

    Where ``spec`` is not known it is the next base model, whatever was made.
    """
    averaged = following.base if following.averaged is None else following.averaged
    return following.base if spec is None else with_mean(spec, base, averaged)


def _opened_bytes(spec: RoundSpec, result: RoundResult) -> int:
    """Bytes of the opened sums, from which the next model follows."""
    values = [spec.part(part.part).values for part in result.parts if part.opened]
    return sum(packed_bytes(one.coordinates, one.bits) for one in values)
