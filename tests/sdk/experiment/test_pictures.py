"""Pictures show what is in the records: by their pixels, and by what is left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sdk.support.studies import made_run, made_study, members

from fedddpm.experiment.report.pictures import curves, rounds_strip, split_picture
from fedddpm.experiment.report.trade_off_picture import beside_paper, trade_off_pictures
from fedddpm.experiment.results import InstitutionRecord, StudyResults

FULL, UDEC = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == colour).all(axis=2).sum())


def test_each_method_has_its_line(tmp_path: Path) -> None:
    both = curves(made_study(made_run("FULL", rounds=4), made_run("UDEC", rounds=4)), tmp_path)
    assert [path.name for path in both] == ["loss-k5-iid-paper.png", "distance-k5-iid-paper.png"]
    assert all(pixels(path, FULL) > 200 and pixels(path, UDEC) > 200 for path in both)
    lone = curves(made_study(made_run("FULL", rounds=4)), tmp_path)
    assert pixels(lone[0], FULL) > 200
    assert pixels(lone[0], UDEC) == 0


def test_seeds_make_a_band(tmp_path: Path) -> None:
    def blue(*seeds: int) -> int:
        path = curves(made_study(*(made_run("FULL", seed, rounds=4) for seed in seeds)), tmp_path)[0]
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB")).astype(int)
        return int((rgb[..., 2] - rgb[..., 0] > 20).sum())

    assert blue(0, 10) > 3 * blue(0)


def test_panels_and_what_was_not_measured(tmp_path: Path) -> None:
    study = made_study(made_run(k=5, done=0), made_run(k=10, rounds=1), made_run("centralised", rounds=1))
    assert [path.name for path in curves(study, tmp_path)] == [
        "loss-k5-iid-paper.png",
        "distance-k5-iid-paper.png",
        "loss-k10-iid-paper.png",
        "distance-k10-iid-paper.png",
    ]
    assert curves(made_study(made_run(done=0)), tmp_path) == []
    baseline = curves(made_study(made_run("centralised", rounds=1)), tmp_path)
    assert [path.name for path in baseline] == ["loss-k1-all-paper.png", "distance-k1-all-paper.png"]


def test_who_has_what_grows_with_the_institutions(tmp_path: Path) -> None:
    sizes = []
    for k in (3, 12):
        with Image.open(split_picture(members(k), tmp_path / f"{k}.png")) as image:
            sizes.append(image.size)
    assert sizes[1][1] > 2 * sizes[0][1]
    bare = split_picture([InstitutionRecord(name="a", images=50)], tmp_path / "bare.png")
    assert pixels(bare, FULL) > 1000


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (4, 4), (15, 6)])
def test_a_strip_shows_six_rounds_at_most(tmp_path: Path, count: int, shown: int) -> None:
    grids = []
    for i in range(count):
        Image.new("RGB", (40, 40), (10 * i + 5, 0, 0)).save(tmp_path / f"{i}.png")
        grids.append((f"round {i + 1}", tmp_path / f"{i}.png"))
    strip = rounds_strip(grids, tmp_path / "strip.png")
    assert strip is not None
    assert [pixels(strip, (10 * i + 5, 0, 0)) > 10_000 for i in (0, count - 1)] == [True, True]
    assert sum(pixels(strip, (10 * i + 5, 0, 0)) > 10_000 for i in range(count)) == shown


def test_a_strip_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    missing = [("round 1", tmp_path / "bad.png"), ("round 2", tmp_path / "absent.png")]
    assert rounds_strip(missing, tmp_path / "strip.png") is None
    assert rounds_strip([], tmp_path / "strip.png") is None


def test_rings_are_points_on_a_line_of_bytes(tmp_path: Path) -> None:
    runs = [made_run(method, bits=bits, rounds=4) for method in ("FULL", "UDEC") for bits in (32, 8, 4)]
    (path,) = trade_off_pictures(made_study(*runs, made_run("centralised", rounds=4)), tmp_path)
    assert path.name == "traffic-k5-iid-paper.png"
    assert pixels(path, FULL) > 200
    assert pixels(path, UDEC) > 200
    (bare,) = trade_off_pictures(made_study(runs[0].model_copy(update={"final": []})), tmp_path)
    assert pixels(bare, UDEC) == 0
    assert trade_off_pictures(made_study(made_run(done=2), made_run("centralised")), tmp_path) == []


def test_curves_tell_rings_apart(tmp_path: Path) -> None:
    one = curves(made_study(made_run("FULL", bits=8, rounds=4)), tmp_path / "one")[0]
    two = curves(made_study(*(made_run("FULL", bits=bits, rounds=4) for bits in (8, 4))), tmp_path / "two")[0]
    with Image.open(one) as first, Image.open(two) as second:
        shades = [{rgb for _, rgb in image.convert("RGB").getcolors(2**16) or ()} for image in (first, second)]
    assert FULL in shades[0] & shades[1]
    assert len([rgb for rgb in shades[1] - shades[0] if rgb[2] - rgb[0] > 60]) > 3  # a paler blue


def test_the_papers_own_points_stand_beside_ours(tmp_path: Path) -> None:
    def study(*methods: str, savings: tuple[str, ...] = ("rescaled", "clipped"), **changes: object) -> StudyResults:
        return made_study(*(made_run(method, k=10, savings=savings) for method in methods), **changes)

    (alone,) = beside_paper(study("FULL", "centralised"), tmp_path / "one")
    assert alone.name == "paper-k10-iid-paper.png"
    (both,) = beside_paper(study("FULL", "UDEC", "centralised"), tmp_path / "both")
    assert pixels(alone, UDEC) == 0
    assert pixels(both, UDEC) > 100
    assert beside_paper(study("FULL", savings=("rescaled",)), tmp_path) == []  # nothing was saved as the paper does
    assert beside_paper(made_study(made_run("FULL", k=7, savings=("clipped",))), tmp_path) == []  # it has no K = 7
    assert beside_paper(other_images(study("FULL")), tmp_path) == []


def other_images(study: StudyResults) -> StudyResults:
    return study.model_copy(update={"settings": {**study.settings, "data": "cifar10"}})
