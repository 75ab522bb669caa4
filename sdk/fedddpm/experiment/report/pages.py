"""The pages of a study: ``report.html``, one file that opens anywhere, and ``results.md`` with the same tables."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fedddpm.evaluation.optional_packages import require_extra
from fedddpm.experiment.report import pictures
from fedddpm.experiment.report.groups import Group, grouped
from fedddpm.experiment.report.paper_comparison import comparison_table
from fedddpm.experiment.report.table import INSECURE, as_markdown, escape
from fedddpm.experiment.report.tables import (
    all_tables,
    clients_table,
    institutions_table,
    rounds_table,
    runs_table,
    scores_tables,
)
from fedddpm.experiment.report.trade_off import trade_off_table
from fedddpm.experiment.report.trade_off_picture import beside_paper, trade_off_pictures
from fedddpm.experiment.report.traffic_table import traffic_table
from fedddpm.experiment.results import RunRecord, StudyResults
from fedddpm.files.atomic import write_atomic

HTML, MARKDOWN, PICTURES = "report.html", "results.md", "pictures"
_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """A PNG with the words that stand for it where it cannot be seen."""

    path: Path
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The picture itself, as a data: URI."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Pictures:
    """All pictures of a study, by what they show."""

    traffic: list[Picture]
    curves: list[Picture]
    strips: list[Picture]
    splits: list[Picture]


def write_report(folder: Path, results: StudyResults) -> Path:
    """Write ``report.html``, ``results.md`` and ``pictures/`` below ``folder``; the page's path.

    A study that is only half done gives a page of what there is, which says so.

    Raises:
        ConfigError: matplotlib or jinja2 is missing. CheckpointError: the disk does not take it.
    """
    require_extra()
    place = folder / PICTURES
    shown = Pictures(
        traffic=_traffic(results, place),
        curves=_curves(results, place),
        strips=_strips(folder, results, place),
        splits=_splits(results, place),
    )
    write_atomic(folder / MARKDOWN, _markdown(folder, results, shown).encode())
    page = _render(results, shown)
    write_atomic(folder / HTML, page.encode())
    return folder / HTML


def _render(results: StudyResults, shown: Pictures) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("fedddpm.experiment.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    tables = {
        "scores": scores_tables(results),
        "clients": clients_table(results),
        "trade_off": trade_off_table(results),
        "traffic": traffic_table(results),
        "comparison": comparison_table(results),
        "runs": runs_table(results),
        "institutions": institutions_table(results),
    }
    sections = (
        ("ran", "What was run", True),
        ("results", "Results", True),
        ("traffic", "Traffic against quality", shown.traffic or tables["trade_off"]),
        ("paper", "Beside the paper", tables["comparison"]),
        ("curves", "Over the training", shown.curves),
        ("samples", "Samples", shown.strips),
        ("split", "Who has what", shown.splits or tables["institutions"]),
        ("runs", "Run by run", tables["runs"]),
        ("nets", "Feature nets", results.nets),
        ("again", "How to do it again", True),
    )
    return environment.from_string(source).render(
        results=results,
        settings=[(name, _plain(value)) for name, value in results.settings.items()],
        sections=[(id_, title) for id_, title, there in sections if there],
        finished=sum(run.done for run in results.runs),
        planned=max(len(results.planned), len(results.runs)),
        plain=_plain_runs(results),
        insecure=INSECURE,
        took=_time(results.seconds),
        tables=tables,
        rounds=[rounds_table(run) for run in results.runs if run.rounds],
        shown=shown,
    )


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _plain_runs(results: StudyResults) -> int:
    return sum(run.aggregation == "plain" for run in results.runs)


def _markdown(folder: Path, results: StudyResults, shown: Pictures) -> str:
    finished = sum(run.done for run in results.runs)
    lines = [f"## Study {escape(results.name)}", "", f"{finished} of {len(results.runs)} runs finished.", ""]
    if _plain_runs(results):
        lines += [
            f"> **{INSECURE}** in {_plain_runs(results)} of {len(results.runs)} runs: no masks, for comparison only.",
            "",
        ]
    lines += [f"    {line}" for line in results.command.splitlines()]
    lines += ["", f"Machine: {escape(results.machine)}", ""]
    lines += [f"* {name} {version}" for name, version in sorted(results.versions.items())]
    about = [f"Training images: {results.greys}"] if results.greys else []
    lines += ["", *(f"* {escape(sentence)}" for sentence in (*results.nets, *about, *results.notes)), ""]
    lines += [as_markdown(table) for table in all_tables(results)]
    for picture in (*shown.traffic, *shown.curves, *shown.strips, *shown.splits):
        lines += [f"![{picture.alt}]({picture.path.relative_to(folder).as_posix()})", "", picture.caption, ""]
    return "\n".join(lines)


def _splits(results: StudyResults, place: Path) -> list[Picture]:
    """One picture a number of institutions and way of splitting, of the lowest seed that has it."""
    found: dict[tuple[int, str], RunRecord] = {}
    for group in grouped(results):
        run = group.first
        key = (run.institutions, run.split)
        if not group.centralised and run.members and (key not in found or run.seed < found[key].seed):
            found[key] = run
    shown = []
    for (k, split), run in found.items():
        path = pictures.split_picture(run.members, place / f"split-k{k}-{split}.png")
        sizes = [member.images for member in run.members]
        alt = f"Images of each class at each of {k} institutions, {split}: {min(sizes)} to {max(sizes)} images each"
        shown.append(Picture(path, alt, f"{split}, K = {k}, seed {run.seed}."))
    return shown


def _traffic(results: StudyResults, place: Path) -> list[Picture]:
    alt = "What the runs moved over the wire against how good they became, one line a method, one point a ring"
    caption = "Up and down over the whole run, all institutions; the number at a point is the bits of its ring."
    shown = [Picture(path, alt, caption) for path in trade_off_pictures(results, place)]
    alt = "Bytes against FID, images saved as the paper's code does: our finished runs, and hollow the paper's figures"
    caption = (
        "The paper's bytes are its N in float32, of another network and more rounds; how many images it drew it does"
        " not say, and its images lose everything below mid-grey, as ours do here."
    )
    return shown + [Picture(path, alt, caption) for path in beside_paper(results, place)]


def _curves(results: StudyResults, place: Path) -> list[Picture]:
    shown = []
    for path in pictures.curves(results, place):
        what = "Held-out loss" if path.name.startswith("loss") else "Distance to the real images"
        alt = f"{what} after each round, one line a method ({path.stem}); the numbers stand under Run by run"
        band = (
            "" if len({run.seed for run in results.runs}) < 2 else " The band reaches from the best to the worst seed."
        )
        shown.append(Picture(path, alt, f"{what} after each round.{band}"))
    return shown


def _strips(folder: Path, results: StudyResults, place: Path) -> list[Picture]:
    """Samples of the first run of every group."""
    shown = []
    for group in grouped(results):
        run = group.first
        grids = [
            (_caption(run, record.epochs, record.round), folder / record.grid) for record in run.rounds if record.grid
        ]
        path = pictures.rounds_strip(grids, place / f"samples-{run.name}.png")
        if path is not None:
            title = _title(group)
            alt = f"Samples of {title} from the same noise, round by round"
            shown.append(Picture(path, alt, f"{title}, seed {run.seed}: the same noise after each round."))
    return shown


def _caption(run: RunRecord, epochs: int, round_: int) -> str:
    return f"{epochs} epoch{'s' if epochs > 1 else ''}" if Group((run,)).centralised else f"round {round_ + 1}"


def _title(group: Group) -> str:
    run = group.first
    where = (
        f"{run.method}, network {run.network}"
        if group.centralised
        else f"{run.method}, K = {run.institutions}, {run.split}, network {run.network}{_ring(run)}"
    )
    return f"{where} ({INSECURE})" if run.aggregation == "plain" else where


def _ring(run: RunRecord) -> str:
    return f", {run.bits} bits" if run.bits else ""
