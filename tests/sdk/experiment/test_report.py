"""The pages of a study: whole, self-contained, and honest about what was not secure or not finished."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tests.sdk.support.studies import made_run, made_study, write_grids

from fedddpm.errors import CheckpointError
from fedddpm.experiment.report.pages import write_report
from fedddpm.experiment.report.table import INSECURE
from fedddpm.experiment.results import StudyResults

VOID = {"img", "meta", "link", "br", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a reader or a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def whole_study() -> StudyResults:
    runs = [made_run(method, seed, k=5, rounds=3, epochs=5) for method in ("FULL", "UDEC") for seed in (0, 1)]
    runs += [made_run("centralised", rounds=3), made_run("USPLIT", k=5, rounds=3, aggregation="plain", done=2)]
    return made_study(*runs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    study = whole_study()
    write_grids(place, study)
    assert write_report(place, study) == place / "report.html"
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    assert all(target.startswith("#") for target in page.attributes("href"))
    ids = page.attributes("id")
    assert {target[1:] for target in page.attributes("href")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_style_asks_for_nothing_and_knows_the_dark(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert '<meta name="viewport"' in text


def test_every_picture_has_words_and_content(page: Page, folder: Path) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 1 + 2 + 4 + 1  # traffic, curves, strips, split
    for attrs in images:
        assert len(attrs["alt"] or "") > 20
        raw = base64.b64decode((attrs["src"] or "").partition(",")[2])
        with Image.open(BytesIO(raw)) as image:
            assert image.format == "PNG"
            assert image.width > 300
            assert len(image.convert("L").getcolors() or ()) > 10
    assert len(list((folder / "pictures").glob("*.png"))) == len(images)


def test_every_fid_stands_with_its_n_and_the_floor(page: Page) -> None:
    scored = [table for table in page.tables if any("FID" in cell for row in table for cell in row)]
    assert len(scored) >= 4
    for table in scored:
        head = table[0]
        assert any(cell.startswith("Real images") for cell in head), head
        floor = next(i for i, cell in enumerate(head) if cell.startswith("Real images"))
        labels = [cell for row in table for cell in row if re.match("FI?D ", cell)]
        assert all(re.fullmatch(r"FI?D \(N = \d+\)|FID here|FID in the paper", cell) for cell in labels)
        assert {row[floor] for row in table[1:]} <= {"23.2", "0.00300", "-"}


def test_a_plain_average_cannot_be_overlooked(folder: Path, page: Page) -> None:
    for name in ("report.html", "results.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert re.search(rf"{INSECURE}(</strong>|\*\*) in 1 of 6 runs", text), name
    cells = [cell for table in page.tables for row in table for cell in row]
    assert cells.count(INSECURE) >= 3
    assert any(tag == "td" and "insecure" in (attrs.get("class") or "") for tag, attrs in page.tags)


def test_a_study_without_one_says_nothing_of_it(tmp_path: Path) -> None:
    write_report(tmp_path, made_study(made_run(rounds=2)))
    for name in ("report.html", "results.md"):
        assert INSECURE not in (tmp_path / name).read_text(encoding="utf-8")


def test_what_people_wrote_is_no_markup(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Images of &lt;b&gt;the&lt;/b&gt; first seed" in text
    assert "<b>the" not in (folder / "results.md").read_text(encoding="utf-8")


def test_an_unfinished_study_says_so(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Not finished." in text
    assert "5 of 6 runs finished" in text
    assert "NOT FINISHED" in text


def test_a_study_before_its_first_round_has_a_page(tmp_path: Path) -> None:
    write_report(tmp_path, made_study(made_run(done=0)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No run has final scores yet." in text
    assert Page(text).attributes("src")  # who has what is known already
    write_report(tmp_path, made_study())
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).attributes("src") == []


def test_markdown_points_at_pictures_that_are_there(folder: Path) -> None:
    text = (folder / "results.md").read_text(encoding="utf-8")
    targets = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(targets) == 8
    assert all((folder / target).is_file() for target in targets)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_report(tmp_path, made_study(made_run(rounds=1)))
