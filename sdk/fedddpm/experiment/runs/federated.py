"""One run of a federated method: K institutions, R rounds, every average through the real aggregation.

A round is train, sum, take over, look. Each step leaves files and gives the same result when it is done again, so a run
that was killed goes on at the round it was in, and its trainings at their last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from fedddpm.compute.seeds import derived_seed
from fedddpm.config import LearningOptions
from fedddpm.data.splits import Indices
from fedddpm.errors import CheckpointError, TrainingError
from fedddpm.experiment.aggregation.memory_round import Opened
from fedddpm.experiment.aggregation.memory_session import Federation
from fedddpm.experiment.aggregation.round_sum import sum_round
from fedddpm.experiment.aggregation.specification import SpecMaker
from fedddpm.experiment.design.images import ImageSource, class_counts, open_source
from fedddpm.experiment.design.plan import RunPlan, floor
from fedddpm.experiment.design.traffic_plan import paper_parameters
from fedddpm.experiment.results import InstitutionRecord, RoundRecord, RunRecord, SumRecord
from fedddpm.experiment.runs.run_context import RunContext, Save
from fedddpm.experiment.runs.scoring import Tell, Where
from fedddpm.experiment.runs.site import (
    AdoptJob,
    Site,
    Trained,
    TrainJob,
    adopt,
    is_kept,
    measure_loss,
    model_file,
    stored_update,
    train,
)
from fedddpm.files.atomic import write_atomic
from fedddpm.generation.networks import load_network
from fedddpm.model.ema import AverageState, average_file, save_average
from fedddpm.model.model_files import save_model
from fedddpm.model.partition import flatten, manifest
from fedddpm.model.unet import UNet
from fedddpm.updates.adoption import replace_parts
from fedddpm.updates.error_feedback import Summed
from fedddpm.updates.local_update import LocalUpdate, local_parts
from fedddpm_protocol.agreement.methods import Method, part_of
from fedddpm_protocol.agreement.model_layout import Vector, coordinates, model_hash
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.losses import federation_losses


class FederatedRun:
    """Runs one plan, from the start or from where ``record`` ended."""

    def __init__(self, around: RunContext, plan: RunPlan, shares: list[Indices], record: RunRecord | None) -> None:
        self._around, self._plan, self._settings = around, plan, around.settings
        self._method = Method(plan.method)
        self._folder = around.run_folder(plan.name)
        averaged = self._settings.ema_decay > 0
        source = ImageSource.of(self._settings)
        self._sites = {
            name: Site(
                name=name,
                folder=self._folder / name,
                source=source,
                share=share,
                loss_images=self._settings.loss_images,
                seed=derived_seed(plan.seed, name),  # one seed for all would give all the same noise at every step
                device=around.workers.device(around.device),
                averaged=averaged,
            )
            for name, share in zip(plan.members, shares, strict=True)
        }
        secure = plan.aggregation == "secure"
        self._federation = Federation.found(
            "study", plan.members, self._settings.c_max if secure else 0, floor(self._settings.c_max) if secure else 2
        )
        self._sizes = around.part_sizes(plan.network)
        self.record = record or self._new_record()
        self._run_began = time.monotonic() - self.record.seconds

    def run(self, tell: Tell, save: Save) -> RunRecord:
        """Do all rounds that are not done, and the scores at the end; ``save`` makes each step durable.

        Raises:
            TrainingError: an institution's training diverged, or a worker died.
        """
        if not self.record.rounds:
            self._begin()
        while len(self.record.rounds) < self._settings.rounds:
            self._keep(save, rounds=[*self.record.rounds, self._round(len(self.record.rounds), tell)])
            self._forget(len(self.record.rounds))
        final = self._around.meter.at_the_end(self._where(), tell)
        self._keep(save, final=final, planned_traffic=self._traffic(), done=True)
        return self.record

    # --- one round ------------------------------------------------------------------------------------------------

    def _round(self, index: int, tell: Tell) -> RoundRecord:
        base_model = self._network(index)
        spec = self._specs.round_spec(self.record.rounds, base_model)
        trained = self._train(spec, tell)
        updates, averaged = self._updates(spec), self._averaged(spec)
        done = sum_round(self._federation, self._specs, self.record.rounds, base_model, updates, averaged)
        spec, opened = done.spec, done.opened
        losses = self._adopt(spec, opened, tell)
        grid = self._folder / f"round-{index + 1:03d}.png"
        where = self._where(index + 1)
        measured = self._around.meter.after_round(where, grid, lambda at, share: tell("drawing images", share))
        return self._round_record(spec, trained, opened, losses, grid if grid.exists() else None).model_copy(
            update={
                "measured": measured,
                "wrapped": done.wrapped,
                "payload_up": done.payload_up,
                "payload_down": done.payload_down,
            }
        )

    def _train(self, spec: RoundSpec, tell: Tell) -> dict[str, Trained]:
        s = self._settings
        learning = LearningOptions(ema_decay=s.ema_decay or None, error_feedback=s.error_feedback, flips=s.flips)
        base = model_file(self._together, spec.round) if self._method is Method.TURN else None
        jobs = [TrainJob(site, spec, learning, base) for site in self._sites.values()]
        shares = [0.0] * len(jobs)

        def on_progress(number: int, share: float) -> None:
            shares[number] = share
            tell(f"round {spec.round + 1} of {s.rounds}: training", sum(shares) / len(shares))

        return dict(zip(self._sites, self._around.workers.map(train, jobs, on_progress), strict=True))

    def _updates(self, spec: RoundSpec) -> dict[str, LocalUpdate]:
        updates = {}
        for name, site in self._sites.items():
            update = stored_update(site, spec)
            if update is None:
                raise TrainingError(f"{name} trained, and its update is not in {site.folder}", "Look at that disk")
            updates[name] = update
        return updates

    def _adopt(self, spec: RoundSpec, opened: Opened, tell: Tell) -> list[float]:
        """Everybody takes the new model; losses of the networks that differ."""
        path = self._folder / "shared.npy"
        try:
            np.save(path, opened.model)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written ({error.strerror})", "Free some space") from error
        if opened.averaged is not None:
            write_atomic(self._averaged_file(spec.round + 1), opened.averaged.astype("<f4").tobytes())
        same = not local_parts(self._method)
        together = [self._adopt_together(spec, opened)] if self._method is Method.TURN else []
        scored = [] if together else list(self._sites)[: 1 if same else None]
        jobs = [
            AdoptJob(site, spec, path, scored=site.name in scored, opened=self._sums_of(site.name, opened))
            for site in self._sites.values()
        ]
        losses = self._around.workers.map(adopt, jobs, lambda at, share: tell("taking over the model", share))
        known = together or [loss for loss in losses if loss is not None]
        return known * len(self._sites) if same else known

    def _adopt_together(self, spec: RoundSpec, opened: Opened) -> float:
        """Store the one model of a run with TURN, which is no institution's; its loss."""
        whole = self._network(spec.round)
        replace_parts(whole, self._method.shared_parts, opened.model)
        save_model(model_file(self._together, spec.round + 1), whole)
        first = next(iter(self._sites.values()))
        return measure_loss(whole, first.images()[1], first.device)

    def _averaged(self, spec: RoundSpec) -> Vector | None:
        """With outer momentum, the averaged model of the round before; None without it, and in the first round."""
        if not spec.outer.momentum or not spec.round:
            return None
        path = self._averaged_file(spec.round)
        try:
            vector: Vector = np.frombuffer(path.read_bytes(), "<f4").astype(np.float32)
        except (OSError, ValueError):
            vector = np.zeros(0, np.float32)
        if len(vector) != coordinates(spec.base_manifest) or self._hash(spec, vector) != self._last_averaged():
            raise CheckpointError(
                f"{path} does not hold the averaged model of round {spec.round}",
                f"Restore it, or remove {self._folder} and its run from the study, which is then done again",
            )
        return vector

    def _last_averaged(self) -> str:
        return self.record.rounds[-1].averaged_hash

    @staticmethod
    def _hash(spec: RoundSpec, vector: Vector) -> str:
        return model_hash(spec.base_manifest, vector).hex()

    def _averaged_file(self, rounds: int) -> Path:
        return self._folder / f"averaged-{rounds:04d}.f32"

    def _sums_of(self, site: str, opened: Opened) -> dict[str, Summed] | None:
        """By part, the sum in which an institution stands; None where what rounding took is not kept."""
        if not self._settings.error_feedback:
            return None
        own = {session: members for session, members in opened.survivors.items() if site in members}
        c_max = self._federation.roster.c_max
        return {part_of(session): Summed(members, members, c_max) for session, members in own.items()}

    def _round_record(
        self, spec: RoundSpec, trained: Mapping[str, Trained], opened: Opened, losses: list[float], grid: Path | None
    ) -> RoundRecord:
        before, after = self._mean_losses(trained, opened)
        return RoundRecord(
            round=spec.round,
            epochs=(spec.round + 1) * spec.epochs,
            train_loss=after,
            loss_before=before,
            loss=sum(losses) / len(losses),
            client_losses=dict(zip(self._sites, losses, strict=True)) if local_parts(self._method) else {},
            sums={
                part: SumRecord(norm=one.norm, survivors=one.survivors, weight=one.weight)
                for part, one in opened.references.items()
            },
            survivors=len(set().union(*opened.survivors.values())),
            clipped=opened.clipped,
            aggregation_s=opened.seconds,
            training_s=max(one.seconds for one in trained.values()),
            model_hash=self._hash(spec, opened.model),
            averaged_hash="" if opened.averaged is None else self._hash(spec, opened.averaged),
            spec_hash=spec.hash.hex(),
            result_hash=opened.result_hash.hex(),
            grid=None if grid is None else str(grid.relative_to(self._around.folder)),
        )

    def _mean_losses(self, trained: Mapping[str, Trained], opened: Opened) -> tuple[float, float]:
        """From the opened sums where everybody is in one, as a federation would know them; else from the records."""
        summed = ((session, sums, len(opened.survivors[session])) for session, sums in opened.sums.items())
        pooled = None if self._method is Method.USPLIT else federation_losses(summed)
        if pooled is not None:
            return pooled
        count = len(trained)
        return sum(t.loss_before for t in trained.values()) / count, sum(t.loss_after for t in trained.values()) / count

    # --- what a round is made of ------------------------------------------------------------------------------------

    @cached_property
    def _specs(self) -> SpecMaker:
        first = self._around.first_network(self._plan.network, self._plan.seed)
        return SpecMaker(
            self._settings,
            self._plan,
            self._federation.roster,
            initial_model_hash=model_hash(manifest(first), flatten(first)),
            weight_cap=max(len(site.share) for site in self._sites.values()),
        )

    def _network(self, rounds: int) -> UNet:
        """A network that holds the base model: the first institution's, or with TURN the federation's own."""
        folder = self._together if self._method is Method.TURN else next(iter(self._sites.values())).folder
        return load_network(model_file(folder, rounds), "model")

    @property
    def _together(self) -> Path:
        """Where the one model of a run with TURN lies, which no institution's network is."""
        return self._folder / "federation"

    def _where(self, rounds: int | None = None) -> Where:
        local = bool(local_parts(self._method))
        folders = {name: site.folder for name, site in self._sites.items()}
        if not local and self._settings.ema_decay == 0:
            one = self._together if self._method is Method.TURN else next(iter(folders.values()))
            folders = {next(iter(folders)): one}
        done = len(self.record.rounds) if rounds is None else rounds
        return Where(folders, done, done * self._settings.epochs, local, self._plan.seed)

    def _traffic(self) -> int:
        hashes = [bytes.fromhex(record.spec_hash) for record in self.record.rounds]
        turns = [self._specs.turn(record.round) for record in self.record.rounds]
        return paper_parameters(self._method, self._sizes, self._plan.members, hashes, turns)

    # --- files -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give everybody theta_0."""
        model = self._around.first_network(self._plan.network, self._plan.seed)
        if self._method is Method.TURN:
            self._together.mkdir(parents=True, exist_ok=True)
            save_model(model_file(self._together, 0), model)
        for site in self._sites.values():
            site.folder.mkdir(parents=True, exist_ok=True)
            path = model_file(site.folder, 0)
            if not is_kept(path, averaged=site.averaged):
                if site.averaged:
                    save_average(average_file(path), model, AverageState.fresh(model))
                save_model(path, model)

    def _forget(self, rounds: int) -> None:
        """Remove the networks of rounds that are behind everybody: those of fewer than ``rounds``."""
        for folder in (self._together, *(site.folder for site in self._sites.values())):
            for old in range(rounds):
                path = model_file(folder, old)
                path.unlink(missing_ok=True)
                average_file(path).unlink(missing_ok=True)
        for old in range(rounds):
            self._averaged_file(old).unlink(missing_ok=True)

    def _new_record(self) -> RunRecord:
        plan, train_images = self._plan, open_source(ImageSource.of(self._settings))[0]
        return RunRecord(
            name=plan.name,
            method=plan.method,
            institutions=plan.institutions,
            split=plan.split,
            network=plan.network,
            seed=plan.seed,
            bits=plan.bits,
            aggregation=plan.aggregation,
            parameters=self._sizes,
            members=[
                InstitutionRecord(name=name, images=len(site.share), labels=class_counts(train_images, site.share))
                for name, site in self._sites.items()
            ],
        )

    def _keep(self, save: Save, **changes: object) -> None:
        seconds = time.monotonic() - self._run_began
        self.record = self.record.model_copy(update={**changes, "seconds": seconds})
        save(self.record)
