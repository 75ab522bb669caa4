"""What a study found out, as records with one JSON form: the source of every table, curve and page.

``results.json`` holds one :class:`StudyResults`. It is written anew after each round, so a reader always finds a
whole file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedddpm.errors import CheckpointError
from fedddpm.evaluation.scores import Scores
from fedddpm.files.atomic import write_atomic

FILE = "results.json"
FORMAT = "fedddpm/study/1"
CENTRALISED = "centralised"  # stands where a method does, for training on all images in one place


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Record):
    """Scores of one moment; ``clients`` only where the institutions' networks differ (ULATDEC and UDEC)."""

    epochs: int = 0  # done by each institution when this was measured
    pooled: Scores  # images drawn from all institutions' networks in equal shares
    clients: dict[str, Scores] = {}
    seconds: float = 0.0  # of sampling and scoring


class SumRecord(_Record):
    """How large one part's opened sum was: the scale of its next one follows from it."""

    norm: float  # of the mean update; 0.0: nothing follows
    survivors: int
    weight: int  # sum of their weights, in units


class RoundRecord(_Record):
    """One round of a run, or E epochs of the centralised baseline."""

    round: int  # from 0
    epochs: int  # local epochs done at its end, since the run's beginning
    train_loss: float | None  # mean over the institutions after local training, on their held-out images
    loss_before: float | None  # the same before it
    loss: float  # held-out loss of what everybody has at the round's end: mean over the institutions
    client_losses: dict[str, float] = {}
    survivors: int = 0
    clipped: int = 0  # institutions whose update was scaled down to the clip norm
    payload_up: int = 0  # bytes of all institutions together: packed words, as the round's specification plans them
    payload_down: int = 0
    sums: dict[str, SumRecord] = {}  # part -> what was opened; a part that is missing kept its base value
    wrapped: int = 0  # sums that were too large for their ring and were not used
    aggregation_s: float = 0.0  # the secure sum alone, all institutions on one machine
    training_s: float = 0.0  # longest institution
    model_hash: str = ""  # hex, of the shared parts
    averaged_hash: str = ""  # the same of the averaged model, with outer momentum
    spec_hash: str = ""  # hex; decides who reported which part with USPLIT
    result_hash: str = ""  # hex, of the signed result that the next round names; of the model where nothing is signed
    measured: Measured | None = None  # scores by the fast net, where asked for
    grid: str | None = None  # PNG, relative to the study's folder


class InstitutionRecord(_Record):
    """Who brought what."""

    name: str
    images: int  # for training, the held-out ones included
    labels: list[int] = []  # images of each class; empty where the images have no labels


class RunRecord(_Record):
    """One line of the study's plan and what became of it."""

    name: str  # folder below runs/
    method: str  # FULL, USPLIT, ULATDEC, UDEC or centralised
    institutions: int
    split: str
    network: str
    seed: int
    bits: int = 0  # of the ring that updates travel in, once their size is known; 0: none do
    aggregation: Literal["secure", "plain", "none"]  # "plain": without masks, for comparison only
    parameters: dict[str, int]  # of each part of the network
    members: list[InstitutionRecord]
    planned_traffic: int = 0  # N of the paper: parameters up and down over the run
    rounds: list[RoundRecord] = []
    final: list[Measured] = []  # one a number of samples, net and way of saving
    seconds: float = 0.0
    done: bool = False


class StudyResults(_Record):
    """A whole study."""

    format: str = FORMAT
    name: str  # preset, or "custom"
    command: str  # what was typed
    settings: dict[str, object]  # as resolved; the study's folder belongs to exactly these
    machine: str
    versions: dict[str, str]
    nets: list[str] = []  # sentences: which feature nets scored, with which weights, how proven
    images: str = ""  # SHA-256 of training and test images
    planned: list[str] = []  # names of all runs, also of those not begun
    greys: str = ""  # the range of the training images' grey values, and how they came to 0..255
    notes: list[str] = []  # what a reader must know, for instance runs without masks
    seconds: float = 0.0
    runs: list[RunRecord] = []


def write_results(folder: Path, results: StudyResults) -> Path:
    """Write ``results.json`` below ``folder``, atomically; CheckpointError if the disk does not take it."""
    path = folder / FILE
    write_atomic(path, results.model_dump_json(indent=1).encode() + b"\n")
    return path


def read_results(folder: Path) -> StudyResults:
    """Read the results of a study.

    Raises:
        CheckpointError: there are none, or the file is no such thing.
    """
    path = folder / FILE
    try:
        return StudyResults.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", "Run: fedddpm experiment") from error
    except ValidationError as error:
        raise CheckpointError(f"{path} holds no results of this version", "Run the study in a new folder") from error
