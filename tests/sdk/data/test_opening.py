"""Images from every kind of source, and what is said when they are unusable."""

import gzip
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.data.opening import ImageSet, open_images, split_holdout, to_floats, to_uint8
from fedddpm.errors import DataError
from fedddpm.training.batches import Batches

CPU = torch.device("cpu")


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_fashion_mnist(folder: Path, zipped: bool) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(6 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(6, 28, 28)
    for prefix, pixels in (("train", images), ("t10k", images[:2])):
        labels = np.arange(len(pixels), dtype=np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return images


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_fashion_mnist_from_its_files(tmp_path: Path, zipped: bool, place: str) -> None:
    pixels = write_fashion_mnist(tmp_path / place, zipped)
    for source, root in ((tmp_path, tmp_path / "elsewhere"), ("fashion-mnist", tmp_path)):
        data = open_images(source, root=root, image_size=28, channels=1)
        np.testing.assert_array_equal(data.images[:, 0].numpy(), pixels)
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(open_images(tmp_path, split="test")) == 2
    assert open_images(tmp_path, limit=3).labels.tolist() == [0, 2, 5]  # type: ignore[union-attr]


def test_torchvision_reads_the_same_fashion_mnist(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", zipped=False)
    load_torchvision()
    from torchvision.datasets import FashionMNIST

    theirs = FashionMNIST(tmp_path, train=True, download=False)
    assert torch.equal(theirs.data, open_images("fashion-mnist", root=tmp_path).images[:, 0])


def test_damaged_fashion_mnist_is_told(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, zipped=True)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    good = labels.read_bytes()
    for bad in (
        good[:-9],
        b"no gzip",
        gzip.compress(idx(np.zeros(6, np.uint8), kind=9)),
        gzip.compress(b"\0\0\x08\x01\0\0\0\x06"),
    ):
        labels.write_bytes(bad)
        with pytest.raises(DataError, match="Get the file again"):
            open_images(tmp_path)
    labels.write_bytes(gzip.compress(idx(np.zeros(5, np.uint8))))
    with pytest.raises(DataError, match="6 images need as many"):
        open_images(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte"):
        open_images(tmp_path)


def test_no_fashion_mnist_and_no_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_torchvision()
    from torchvision.datasets import CIFAR10, FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match="Debian: package dataset-fashion-mnist"):
        open_images("fashion-mnist", root=tmp_path)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        open_images("cifar10", root=tmp_path)
    with pytest.raises(DataError, match="CelebA is not complete"):
        open_images("celeba", root=tmp_path)


def test_cifar10_comes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_torchvision()
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def made(self: CIFAR10, root: Path, train: bool, download: bool) -> None:  # what __init__ leaves behind
        self.data, self.targets = pixels[: 4 if train else 2], [3, 1, 2, 0][: 4 if train else 2]

    monkeypatch.setattr(CIFAR10, "__init__", made)
    data = open_images("cifar10", root=tmp_path, image_size=32, channels=3)
    np.testing.assert_array_equal(data.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert data.labels is not None
    assert data.labels.tolist() == [3, 1, 2, 0]
    assert len(open_images("cifar10", root=tmp_path, split="test")) == 2


def write_celeba(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six images in torchvision's layout: 178 x 218, a white square of 178 x 178 between black bars."""
    load_torchvision()
    from torchvision.datasets import CelebA

    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in range(1, 7)]
    for i, name in enumerate(names):
        image = np.zeros((218, 178, 3), np.uint8)
        image[20:198] = 40 * i + 20
        Image.fromarray(image).save(base / "img_align_celeba" / name, quality=95)
    (base / "list_eval_partition.txt").write_text(
        "".join(f"{n} {(0, 0, 1, 1, 2, 2)[i]}\n" for i, n in enumerate(names))
    )
    (base / "identity_CelebA.txt").write_text("".join(f"{n} {i + 1}\n" for i, n in enumerate(names)))
    for name, columns in (("list_attr_celeba", 3), ("list_bbox_celeba", 4), ("list_landmarks_align_celeba", 10)):
        header = " ".join(f"c{i}" for i in range(columns))
        rows = "".join(f"{n} {' '.join(['1'] * columns)}\n" for n in names)
        (base / f"{name}.txt").write_text(f"{len(names)}\n{header}\n{rows}")
    monkeypatch.setattr(CelebA, "file_list", [(i, None, name) for i, _, name in CelebA.file_list])
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)  # it asks for the zip's checksum


def test_celeba_is_cropped_to_178_and_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_celeba(tmp_path, monkeypatch)
    data = open_images("celeba", root=tmp_path, image_size=64)
    assert data.images.shape == (2, 3, 64, 64)
    for i, image in enumerate(data.images):  # the black bars above and below are exactly what the crop takes away
        assert (image.int() - (40 * i + 20)).abs().max() <= 3
    test = open_images("celeba", root=tmp_path, split="test", image_size=32, channels=1)
    assert test.images.shape == (2, 1, 32, 32)
    assert open_images("celeba", root=tmp_path).image_size == 64


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_celeba_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    write_celeba(tmp_path, monkeypatch)
    first = open_images("celeba", root=tmp_path, image_size=size, cache=tmp_path / "cache")
    assert first.images.shape == (2, 3, size, size)
    for path in (tmp_path / "celeba" / "img_align_celeba").iterdir():
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))  # nothing could be decoded any more
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = open_images("celeba", root=tmp_path, image_size=size, cache=tmp_path / "cache")
    assert torch.equal(again.images, first.images)
    with pytest.raises(DataError, match="2 of 2 images"):
        open_images("celeba", root=tmp_path, image_size=size, split="test", cache=tmp_path / "cache")


def test_images_that_celeba_lists_and_lacks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_celeba(tmp_path, monkeypatch)
    (tmp_path / "celeba" / "img_align_celeba" / "000001.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images in .*000001\.jpg: .*No such file"):
        open_images("celeba", root=tmp_path, cache=tmp_path / "cache")


def write_mixed_folder(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for i, (mode, size) in enumerate(
        [("L", 28), ("RGB", 64), ("RGBA", 128), ("P", 40), ("1", 30), ("LA", 33), ("CMYK", 50)]
    ):
        image = Image.fromarray(rng.integers(0, 256, (size, size + 3 * i, 3), dtype=np.uint8)).convert(mode)
        image.save(folder / ("sub" if i % 2 else ".") / f"{i}{'.jpg' if mode == 'CMYK' else '.png'}")
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(folder / "deep.PNG")
    (folder / "notes.txt").write_text("no image")


@pytest.mark.parametrize(("channels", "expected"), [(None, 3), (1, 1), (3, 3)])
def test_a_folder_of_mixed_images(tmp_path: Path, channels: int | None, expected: int) -> None:
    write_mixed_folder(tmp_path)
    data = open_images(tmp_path, image_size=32, channels=channels)
    assert data.images.shape == (8, expected, 32, 32)
    assert data.labels is None
    assert data.skipped == ()
    deep = [image for image in data.images if (image == 40_000 // 256).all()]
    assert len(deep) == 1  # 16 bits are scaled, not clipped


def test_a_folder_of_grayscale_squares_needs_no_words(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((28, 28), i, np.uint8)).save(tmp_path / f"{i}.png")
    data = open_images(str(tmp_path))
    assert (data.image_size, data.channels) == (28, 1)
    assert data.images[:, 0, 5, 5].tolist() == [0, 1, 2]
    Image.fromarray(np.zeros((28, 30), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"not squares of one size \(28x28, 30x28\). Say image_size"):
        open_images(tmp_path)


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, :4, 3] = 0
    pixels[:, 4:, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = open_images(tmp_path, channels=3)
    assert data.images[0, :, 3].tolist() == [[0] * 4 + [200] * 4] * 3


def test_unreadable_files_are_skipped_and_listed_up_to_a_tenth(tmp_path: Path) -> None:
    for i in range(19):
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    data = open_images(tmp_path)
    assert len(data) == 19
    assert list(data.skipped) == ["bad.png: not an image"]
    cut = (tmp_path / "00.png").read_bytes()
    (tmp_path / "01.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "02.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 20 images in .* cannot be read"):
        open_images(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="20 of 20"):
        open_images(tmp_path, image_size=16, channels=1)


def test_a_limit_is_spread_over_the_folder(tmp_path: Path) -> None:
    for i in range(11):
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    assert open_images(tmp_path, limit=3).images[:, 0, 0, 0].tolist() == [0, 5, 10]


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 28, 28, 3), (5, 3, 28, 28), (5, 28, 28, 1)])
def test_npz_in_medmnist_and_in_plain_form(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)[:, None]
    np.savez(
        tmp_path / "med.npz", train_images=pixels, train_labels=labels, test_images=pixels[:2], test_labels=labels[:2]
    )
    np.savez(tmp_path / "plain.npz", images=pixels, labels=labels[:, 0])
    channels = 3 if 3 in shape else 1
    for name in ("med", "plain"):
        data = open_images(tmp_path / f"{name}.npz", image_size=28, channels=channels)
        assert data.images.shape == (5, channels, 28, 28)
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 3, 4]
    first = pixels.reshape(5, 28, 28, -1)[0, :, :, 0] if shape[1] == 28 else pixels[0, 0]
    np.testing.assert_array_equal(data.images[0, 0].numpy(), first)
    assert len(open_images(tmp_path / "med.npz", split="test")) == 2


def test_several_findings_an_image_are_no_class_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "chest.npz", images=np.zeros((4, 28, 28), np.uint8), labels=np.zeros((4, 14), np.uint8))
    assert open_images(tmp_path / "chest.npz").labels is None


def test_unusable_npz_files_are_told(tmp_path: Path) -> None:
    path, good = tmp_path / "x.npz", np.zeros((4, 28, 28), np.uint8)
    cases: list[tuple[dict[str, np.ndarray], str]] = [
        ({"pictures": good}, r"no array train_images or images \(it has pictures\)"),
        ({"images": good.astype(np.float32)}, "are float32"),
        ({"images": good[:, :, :20]}, "and square"),
        ({"images": good[:0]}, "no images"),
        ({"images": good[0]}, r"uint8 \[28, 28\]"),
        ({"images": np.array([object()])}, r"cannot be read \(it holds Python objects\)"),  # never unpickled
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            open_images(path)
    lone = BytesIO()
    np.save(lone, good)
    for raw in (b"", b"PK\x03\x04 cut off", b"text", lone.getvalue()):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="cannot be read") as told:
            open_images(path)
        assert "pickle" not in str(told.value)


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text("")
    write_fashion_mnist(tmp_path / "fm", zipped=True)
    cases = [
        (tmp_path / "absent", {}, "does not exist"),
        (tmp_path / "empty", {}, "there are no images"),
        (tmp_path / "file.csv", {}, "neither a folder nor an .npz"),
        (tmp_path / "fm", {"image_size": 32}, "are 28x28, not 32x32"),
        (tmp_path / "fm", {"channels": 3}, "have 1 channels, not 3"),
        (tmp_path / "fm", {"channels": 2}, "2 channels are not supported"),
        (tmp_path / "fm", {"limit": 0}, "at least 1"),
        (tmp_path / "fm", {"split": "valid"}, "no split 'valid'"),
    ]
    for source, options, message in cases:
        with pytest.raises(DataError, match=message):
            open_images(source, **options)  # type: ignore[arg-type]


def test_batches_are_floats_in_random_order_and_meet_every_image_once() -> None:
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 4, 4) * 25
    feed = Batches(ImageSet(images, torch.arange(10)), 4, CPU, labelled=True)
    got = list(feed.epoch(torch.Generator().manual_seed(0)))
    assert [len(batch.x_0) for batch in got] == [4, 4, 2]
    assert all(batch.x_0.is_contiguous(memory_format=torch.channels_last) for batch in got)
    whole, labels = torch.cat([batch.x_0 for batch in got]), torch.cat([batch.labels for batch in got])
    assert whole.dtype == torch.float32
    assert sorted(labels.tolist()) == list(range(10))
    assert labels.tolist() != list(range(10))
    assert (to_uint8(whole)[:, 0, 0, 0] == 25 * labels).all()
    rest = list(feed.epoch(torch.Generator().manual_seed(0), start=1))
    assert all(torch.equal(a.x_0, b.x_0) for a, b in zip(rest, got[1:], strict=True))
    plain = Batches(ImageSet(images, torch.arange(10)), 4, CPU, labelled=False)
    assert all(batch.labels is None for batch in plain.epoch(torch.Generator()))


def test_floats_and_bytes_are_inverse() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_floats(pixels, CPU)
    assert (floats.min().item(), floats.max().item()) == (-1, 1)
    assert torch.equal(to_uint8(floats), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_the_held_out_images_are_not_trained_on() -> None:
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 4, 4)
    data = ImageSet(images, torch.arange(40))
    train, held = split_holdout(data, 0.1, seed=3)
    assert (len(train), len(held)) == (36, 4)
    assert train.labels is not None
    assert held.labels is not None
    assert sorted(train.labels.tolist() + held.labels.tolist()) == list(range(40))
    assert held.images[:, 0, 0, 0].tolist() == held.labels.tolist()
    assert torch.equal(split_holdout(data, 0.1, seed=3)[1].images, held.images)
    assert not torch.equal(split_holdout(data, 0.1, seed=4)[1].images, held.images)
    assert [len(part) for part in split_holdout(data.subset([0, 1]), 0.99, seed=0)] == [1, 1]
    for fraction in (0.0, 1.0):
        with pytest.raises(DataError):
            split_holdout(data, fraction, seed=0)
