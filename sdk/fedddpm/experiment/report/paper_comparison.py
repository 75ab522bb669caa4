"""A study beside the paper's numbers, where they speak of the same setting, and what differs all the same."""

from __future__ import annotations

from fedddpm.experiment.report import paper
from fedddpm.experiment.report.groups import Group, Scored, final_scores, grouped, mean_and_spread, short
from fedddpm.experiment.report.table import NONE, Column, Table
from fedddpm.experiment.report.traffic_table import cut
from fedddpm.experiment.results import StudyResults

_SPLITS = (("label", paper.LABEL_SKEW), ("quantity", paper.QUANTITY_SKEW), ("iid", paper.IID))
_COLUMNS = (
    Column("Method"),
    Column("K", True),
    Column("Split"),
    Column("Network"),
    Column("Bits", True),
    Column("Aggregation"),
    Column("Epochs", True),
    Column("Metric"),
    Column("Saving"),
    Column("FID here", True),
    Column("Real images", True),
    Column("FID in the paper", True),
)
_PAPER_SETTINGS: dict[str, tuple[str, object]] = {
    "rounds": ("rounds", paper.ROUNDS),
    "epochs": ("local epochs", paper.LOCAL_EPOCHS),
    "batch_size": ("batch size", paper.BATCH),
    "networks": ("network", (paper.NETWORK,)),
    "subset": ("training images", None),
    "learning_rate": ("learning rate", 1e-4),
    "ema_decay": ("decay of averaged weights", 0.0),
    "sampler": ("sampler", "ancestral"),
    "sampler_steps": ("steps of the sampler", None),
    "conditional": ("class labels", False),
    "concentration": ("concentration of the splits", 0.5),
    "max_steps": ("most local steps a round", 0),
    "test_images": ("test images", None),
}


def comparison_table(results: StudyResults) -> Table:
    """Inception FIDs and traffic beside the paper's; empty where the study is not of the paper's images."""
    traffic = ("N here (10⁶)", "N in the paper (10⁶)", "Saved here", "Saved in the paper")
    columns = (*_COLUMNS, *(Column(title, True) for title in traffic))
    rows: list[tuple[str, ...]] = []
    if results.settings.get("data") == paper.DATASET:
        for group in grouped(results):
            rows += _rows(results, group)
    return Table(f"Beside the paper ({paper.SOURCE})", columns, tuple(rows), differences(results)).without_constant(
        "Split", "Network", "Bits"
    )


def _rows(results: StudyResults, group: Group) -> list[tuple[str, ...]]:
    run = group.first
    traffic = paper.published_traffic(run.method, run.institutions)
    saved = cut(results, group)
    ours = (NONE, NONE) if not run.planned_traffic else (f"{run.planned_traffic / 1e6:.2f}", _percent(saved))
    theirs = (NONE, NONE) if traffic is None else (f"{traffic.millions:.2f}", _percent(traffic.cut))
    tail = (ours[0], theirs[0], ours[1] if run.method != "FULL" else NONE, theirs[1])
    rows = []
    for one in final_scores([group]):
        local = one.epochs if group.centralised else local_epochs(group)
        split, k = (paper.IID, 1) if group.centralised else (paper_split(run.split), run.institutions)
        published = paper.published(run.method, k, split, local)
        if one.pooled[0].metric == "FID" and (published is not None or group.centralised):
            rows.append((*_setting(group), *_measured(one), str(published or NONE), *tail))
    if not rows and traffic is not None and run.network == paper.NETWORK:
        rows = [(*_setting(group), *(NONE,) * 6, *tail)]  # no FID yet: the traffic can be compared all the same
    return rows


def _setting(group: Group) -> tuple[str, ...]:
    run = group.first
    return run.method, str(run.institutions), run.split, run.network, group.bits, group.aggregation


def _measured(one: Scored) -> tuple[str, ...]:
    scores = one.pooled[0]
    distance = mean_and_spread([scores.distance for scores in one.pooled])
    return str(one.epochs), scores.label, scores.saving, distance, short(scores.floor)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} %"


def paper_split(name: str) -> str:
    """The paper's name of a split, or ``name`` where it had no such one."""
    return next((ours for word, ours in _SPLITS if word in name.lower()), name)


def local_epochs(group: Group) -> int:
    """E: epochs of one round; 0 while there is no round."""
    return next((record.epochs // (record.round + 1) for run in group.runs for record in run.rounds), 0)


def differences(results: StudyResults) -> tuple[str, ...]:
    """What keeps these figures and the paper's from being the same measurement, in sentences."""
    sentences = [
        "The paper's images were saved by code that clips everything below mid-grey, so its absolute FIDs are no"
        " ordinary ones: rows with clipped saving come nearest to them, those with rescaled saving are ordinary FIDs.",
        "The paper does not say whether it drew 1000 or 5000 images; an FID falls as N grows, so each row names its N"
        " and the distance that real images have at that N.",
        "The paper's figures scatter: its second experiment has FULL, IID, 5 local epochs once more, with an FID of 28"
        " instead of 39 at K = 2, and of 58 instead of 61 at K = 10.",
        "Our FIDs of ULATDEC and UDEC here are of images pooled from all institutions; the spread of the paper's"
        " suggests that its figures are means over institutions, which stand in the table of single institutions.",
        "The paper's centralised figure is 15 epochs of training, its federated ones 15 rounds of 5 local epochs;"
        " the fair baseline has as many epochs as the federated runs.",
    ]
    changed = [
        f"{what} {_plain(results.settings[key])} instead of {_plain(theirs)}"
        for key, (what, theirs) in _PAPER_SETTINGS.items()
        if key in results.settings and _plain(results.settings[key]) != _plain(theirs)
    ]
    if changed:
        sentences.append(f"This study did not run the paper's settings: {', '.join(changed)}.")
    rings = sorted({run.bits for run in results.runs if run.bits}, reverse=True)
    if rings:
        sentences.append(
            "The paper sends every parameter as a 32-bit float. Here updates travel in rings of"
            f" {' and '.join(map(str, rings))} bits, so bytes fall by more than N does."
        )
    if any(run.aggregation == "plain" for run in results.runs):
        sentences.append(
            "The paper averages in the clear. Rows with the plain average do the same; rows marked secure have the"
            " same average up to the rounding of its fixed-point encoding."
        )
    return tuple(sentences)


def _plain(value: object) -> str:
    """A setting as text; None, for instance no subset, in words."""
    if value is None:
        return "all"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
