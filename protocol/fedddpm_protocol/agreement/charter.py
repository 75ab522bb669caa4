"""The charter of a run: all that decides what is trained in it, signed offline by the federation's root.

The aggregator makes the specifications of the rounds, and can choose nothing in them: each follows from the charter and
from the results before it (see ``lineage``). Charters are numbered over the whole federation and the numbers only grow:
an institution never goes back to an older one, and takes part in one run at a time. A run ends after its rounds, or
when a newer charter names it among those that it ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from fedddpm_protocol.agreement.clipping import ADAPTIVE, CLIPPINGS
from fedddpm_protocol.agreement.methods import Method, turn_of
from fedddpm_protocol.agreement.model_layout import (
    HASH_BYTES,
    NOISE,
    PRECONDITIONED,
    Architecture,
    require,
    require_name,
)
from fedddpm_protocol.agreement.spec import HIDDEN, MAX_CLIP_NORM, MIN_CLIP_NORM, RINGS, WEIGHTINGS, require_outer
from fedddpm_protocol.agreement.terms import (
    CONSTANT,
    LINEAR,
    MODERN,
    OVER_STEPS,
    PAPER,
    PLAIN_MEAN,
    RECIPES,
    OuterOptimizer,
)
from fedddpm_protocol.errors import CharterError, MalformedError, SignatureError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.canonical import added_later, tagged_hash, u64
from fedddpm_protocol.wire.messages import MAX_COHORT, SignedDocument

MAX_NUMBER = 2**31 - 1
MAX_ENDED = 64  # runs that one charter can end
MOST_UNEVEN = 1.5  # between the waits of one part for its turns
MAX_TURNS = 64  # before they begin again
MAX_FINDINGS = 2000  # characters about the weights of a first model without a seed
OBJECTIVES = {  # by what the network predicts
    NOISE: "epsilon-huber",  # the noise, under the Huber loss (Ho 2020, eq. 14)
    PRECONDITIONED: "edm",  # what EDM's preconditioning leaves, squared and weighted alike (Karras 2022, table 1)
}
USUAL_RECIPES = {NOISE: PAPER, PRECONDITIONED: MODERN}  # where the coordinator does not choose
OPTIMIZERS = tuple(recipe.optimizer for recipe in RECIPES.values())  # begun anew each round
SCHEDULES = (CONSTANT, LINEAR, OVER_STEPS)  # of the learning rate; linear: by round, down to 1/rounds of it in the last


@dataclass(frozen=True)
class TrainingRules:
    """What every institution does with its images in a round."""

    objective: str
    optimizer: str
    learning_rate: float  # of the first round
    schedule: str
    epochs: int
    min_steps: int  # fewest and most local steps behind an update; most 0: no limit
    max_steps: int
    batch_size: int
    min_images: int  # fewest images that an institution takes part with

    def __post_init__(self) -> None:
        for what, value, known in (
            ("objective", self.objective, tuple(OBJECTIVES.values())),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            require(value in known, f"unknown {what} {value!r}; known: {', '.join(known)}")
        require(
            self.schedule in RECIPES[self.recipe].schedules,
            f"{self.optimizer} has no schedule {self.schedule!r}; known: {', '.join(RECIPES[self.recipe].schedules)}",
        )
        require(0 < self.learning_rate < math.inf, f"learning rate {self.learning_rate} must be positive and finite")
        require(self.epochs > 0 and self.batch_size > 0, "epochs and batch size must be positive")
        require(self.min_steps > 0 and self.min_images > 0, "the fewest steps and images must be one at least")
        require(
            self.max_steps == 0 or self.max_steps >= self.min_steps,
            f"{self.min_steps} steps at least and {self.max_steps} at most leave none",
        )

    @property
    def recipe(self) -> str:
        """The name of the recipe that the optimizer is of."""
        return next(name for name, recipe in RECIPES.items() if recipe.optimizer == self.optimizer)

    def learning_rate_in(self, round_index: int, rounds: int) -> float:
        """The learning rate of a round, counted from 0; the same bits for everybody."""
        if self.schedule == CONSTANT:
            return self.learning_rate
        return self.learning_rate * ((rounds - round_index) / rounds)  # exactly that of the first round in it


@dataclass(frozen=True)
class FirstModel:
    """theta_0: from a public seed, or given weights with what was found when they were looked at."""

    model_hash: bytes
    seed: bytes  # 32 bytes; empty: the weights are downloaded
    findings: str  # for people; empty where there is a seed, which leaves nothing to look at

    def __post_init__(self) -> None:
        require(len(self.model_hash) == HASH_BYTES, "the hash of the first model must have 32 bytes")
        require(len(self.seed) in (0, HASH_BYTES), "the seed of the first model must have 32 bytes, or none")
        require(
            bool(self.seed) != bool(self.findings),
            "a first model has a seed, or weights with what was checked of them",
        )
        require(len(self.findings) <= MAX_FINDINGS, f"findings must have {MAX_FINDINGS} characters at most")


@dataclass(frozen=True)
class Travel:
    """How updates are weighted, bounded and put into a sum."""

    weighting: str
    weight_cap: int  # samples that count as a full weight
    clip: str  # ADAPTIVE or FIXED
    clip_norm: float  # largest L2 norm of one institution's update
    bits: int  # ring of the values
    first_bits: int  # ring at least, where nothing is known of their size
    chunk_coordinates: int

    def __post_init__(self) -> None:
        require(self.weighting in WEIGHTINGS, f"unknown weighting {self.weighting!r}")
        require(self.weight_cap > 0, "the weight cap must be positive")
        require(self.clip in CLIPPINGS, f"unknown clipping {self.clip!r}; known: {', '.join(CLIPPINGS)}")
        require(MIN_CLIP_NORM <= self.clip_norm <= MAX_CLIP_NORM, f"clip norm {self.clip_norm} is out of range")
        require(self.bits in RINGS and self.first_bits in RINGS, f"rings have {', '.join(map(str, RINGS))} bits")
        require(self.first_bits >= self.bits, "less is known of the first sum than of later ones: its ring is as wide")
        require(self.chunk_coordinates > 0 and self.chunk_coordinates % 8 == 0, "chunks must be multiples of 8")

    @property
    def is_adaptive(self) -> bool:
        """Whether later rounds' clip norm follows from the means before them."""
        return self.clip == ADAPTIVE


@dataclass(frozen=True)
class Charter:
    """What the root signs before a run begins."""

    federation: str
    number: int  # grows with every charter of the federation
    run: str
    ends: tuple[str, ...]  # runs before this one that end here, whatever they came to; sorted
    method: str
    rounds: int
    architecture: Architecture
    first_model: FirstModel
    training: TrainingRules
    travel: Travel
    min_cohort: int  # fewest institutions in a sum, beside what the roster wants
    turns: tuple[str, ...] = added_later(())  # with TURN: whose turn it is, round after round, from the start again
    outer: OuterOptimizer = added_later(PLAIN_MEAN)  # what becomes of the mean update

    def __post_init__(self) -> None:
        require_name("federation", self.federation)
        require_name("run", self.run)
        for run in self.ends:
            require_name("run", run)
        require(list(self.ends) == sorted(set(self.ends)), "the runs that a charter ends must be sorted and distinct")
        require(len(self.ends) <= MAX_ENDED, f"a charter ends {MAX_ENDED} runs at most")
        require(self.run not in self.ends, "a charter does not end its own run")
        require(1 <= self.number <= MAX_NUMBER, f"charters are numbered from 1 to {MAX_NUMBER}")
        require(self.rounds > 0, "a run has one round at least")
        method = Method(self.method)
        require(
            not (method is Method.USPLIT and self.travel.weighting == HIDDEN),
            "USPLIT cannot hide sample counts: sums over parts that differ by one member would reveal one count",
        )
        wanted = OBJECTIVES[self.architecture.prediction]
        require(
            self.training.objective == wanted,
            f"a network that predicts {self.architecture.prediction} is trained by {wanted!r}, not"
            f" {self.training.objective!r}",
        )
        self._check_turns(method)
        require_outer(self.outer, method)
        require(2 <= self.min_cohort <= MAX_COHORT, f"a cohort of {self.min_cohort} is outside 2 to {MAX_COHORT}")

    def _check_turns(self, method: Method) -> None:
        if method is not Method.TURN:
            require(not self.turns, f"{method} has no turns: all of its parts are summed in every round")
            return
        known, taken = tuple(method.sessions), self.turns[: self.rounds]
        for part in self.turns:
            require(part in known, f"unknown turn {part!r}; known: {', '.join(known)}")
        missing = [part for part in known if part not in taken]
        require(
            not missing,
            f"in {self.rounds} rounds it is never the turn of {', '.join(missing)}, so no whole model would come of"
            " them: name each part among the turns, and have as many rounds",
        )
        require(len(self.turns) <= MAX_TURNS, f"{len(self.turns)} turns are more than {MAX_TURNS}")
        for part in known:
            waits = _waits(self.turns, part)
            require(
                max(waits) <= MOST_UNEVEN * min(waits),
                f"{part} waits {min(waits)} to {max(waits)} rounds for its turn: its updates would be so unlike that no"
                " alarm could tell a large one; spread its turns evenly",
            )

    def turn_in(self, round_index: int) -> str:
        """The part that is summed in a round, counted from 0; empty where all are."""
        return turn_of(self.turns, round_index)

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that every specification of the run names."""
        return tagged_hash("charter", canonical.encode(self))

    def encoding_seed(self, round_index: int, previous_result: bytes) -> bytes:
        """32 public bytes behind rotation and dither in all attempts at a round; nobody can choose among several.

        Attempts share it: their numbers are the aggregator's, and what is masked once more is rounded in private.
        """
        return tagged_hash("encoding", self.hash, u64(round_index), previous_result)


def _waits(turns: tuple[str, ...], part: str) -> list[int]:
    """Rounds from each turn of a part to its next."""
    places = [place for place, other in enumerate(turns) if other == part]
    return [after - before for before, after in pairwise([*places, places[0] + len(turns)])]


def sign_charter(charter: Charter, root: keys.SigningKey) -> SignedDocument:
    """Sign a charter with the federation's root key, away from any server."""
    body = canonical.encode(charter)
    return SignedDocument(body=body, signature=root.sign("charter", body))


def open_charter(document: SignedDocument, root_public_key: bytes) -> Charter:
    """The charter under a root signature; SignatureError (another root key) or CharterError (not a valid charter)."""
    try:
        keys.verify(root_public_key, "charter", document.body, document.signature)
    except SignatureError as error:
        raise SignatureError("the run's charter is not signed by the federation's root", "aggregator") from error
    try:
        return canonical.decode(Charter, document.body)
    except MalformedError as error:
        raise CharterError(f"the signed charter is not valid: {error}") from error


def charter_rows(charter: Charter) -> tuple[tuple[str, str], ...]:
    """A charter in plain words, for who signs it and who agrees to it; every field stands in one of the lines."""
    training, travel, first = charter.training, charter.travel, charter.first_model
    network = charter.architecture
    size = f"{network.image_size}x{network.image_size}x{network.channels}"
    wide = f"{network.base_dim} channels times {', '.join(map(str, network.multipliers))}"
    labels = f", {network.classes} classes" if network.classes else ""
    most = f"{training.max_steps} steps at most" if training.max_steps else "no limit of steps"
    falling = {
        CONSTANT: "in every round",
        LINEAR: "in the first round, falling evenly to the last",
        OVER_STEPS: "at most, rising and falling evenly over the steps of the run",
    }[training.schedule]
    origin = f"from the public seed {first.seed.hex()}" if first.seed else "given weights that are downloaded"
    clipping = "following the last mean" if travel.is_adaptive else "in every round"
    return (
        ("federation", charter.federation),
        ("charter", f"number {charter.number}, hash {charter.hash.hex()[:16]}"),
        ("run", f"{charter.run}, {charter.rounds} rounds of {charter.method}"),
        *((("turns", f"{', '.join(charter.turns)}, and again"),) if charter.turns else ()),
        ("ends", f"run {', '.join(charter.ends)}, whatever came of it" if charter.ends else "no other run"),
        ("network", f"{network.preset}, {size} pixels{labels}, {wide}, predicts {network.prediction}"),
        ("first model", f"{first.model_hash.hex()[:16]}, {origin}"),
        *((("found in its weights", first.findings),) if first.findings else ()),
        ("training a round", f"{training.epochs} epochs of batches of {training.batch_size} images; {most}"),
        (
            "least work",
            f"{training.min_steps} steps behind an update, {training.min_images} images at an institution",
        ),
        ("learning rate", f"{training.learning_rate:g} {falling} ({training.optimizer}, {training.objective})"),
        ("largest update", f"L2 norm {travel.clip_norm:g}, {clipping}"),
        *((("outer step", _outer_words(charter.outer)),) if charter.outer != PLAIN_MEAN else ()),
        ("weights", f"{travel.weighting}, {travel.weight_cap} samples count in full"),
        (
            "on the way",
            f"{travel.bits} bits a value, {travel.first_bits} where nothing is known of the size;"
            f" chunks of {travel.chunk_coordinates} values",
        ),
        ("smallest cohort", f"{charter.min_cohort} institutions"),
    )


def _outer_words(outer: OuterOptimizer) -> str:
    mean = f"{outer.learning_rate:g} times the mean update"
    return f"{mean}, momentum {outer.momentum:g} (Nesterov)" if outer.momentum else mean
