"""Reading data sets: what they hold, how they are split, and the error for everything broken."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwprune.core.errors import DataError, UsageError
from hwprune.models import load_model, load_weights
from hwprune.training import evaluate, load_data

SHARED = Path(__file__).parents[3] / "shared" / "data"


def _jpeg(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def _blob(path: Path, labels: list[int], contents: list[bytes] | None = None) -> None:
    contents = contents or [_jpeg(10 * label + 5) for label in labels]
    offset = np.cumsum([0, *map(len, contents)])
    blob = np.frombuffer(b"".join(contents), dtype=np.uint8)
    np.savez(path, blob=blob, offset=offset, label=np.array(labels, dtype=np.uint8))


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    _blob(tmp_path / "train_jpeg.npz", [0, 1, 2] * 20)
    _blob(tmp_path / "val_jpeg.npz", [0, 1, 2] * 5)
    return tmp_path


def _arrays(path: Path, **changes: np.ndarray) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (40, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    np.savez(path, **{"x_train": images, "y_train": labels, "x_test": images[:8], "y_test": labels[:8], **changes})
    return path


def test_digits_are_split_by_the_seed_without_overlap() -> None:
    data, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert (len(data.train), len(data.val), len(data.test)) == (1169, 179, 449)
    assert data.input_shape == (1, 8, 8)
    assert data.classes == 10
    assert data.fingerprint == again.fingerprint != other.fingerprint
    images = torch.cat([data.train.images, data.val.images, data.test.images]).flatten(1)
    whole = torch.cat([other.train.images, other.val.images, other.test.images]).flatten(1)
    assert torch.equal(images.unique(dim=0, return_counts=True)[1], whole.unique(dim=0, return_counts=True)[1])
    normalised = data.normalise(data.train.images)
    assert abs(float(normalised.mean())) < 1e-4
    assert abs(float(normalised.std()) - 1) < 1e-3


def test_blob_folders_are_decoded_and_split(blobs: Path) -> None:
    data = load_data(f"tinyimagenet:{blobs}?classes=2")
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)
    assert data.classes == 2
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), 10 * split.targets + 5)


def test_sizes_take_subsets_and_keep_the_held_out_images(blobs: Path) -> None:
    whole = load_data(f"tinyimagenet:{blobs}?val=12")
    part = load_data(f"tinyimagenet:{blobs}?val=12&train=10&test=4")
    assert (len(part.train), len(part.val), len(part.test)) == (10, 12, 4)
    assert torch.equal(part.val.targets, whole.val.targets)
    assert torch.equal(part.train.targets, whole.train.targets[:10])


def test_decoded_images_come_from_the_cache(blobs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_data(f"tinyimagenet:{blobs}", cache=cache)
    files = sorted(cache.rglob("*.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 3
    assert load_data(f"tinyimagenet:{blobs}", cache=cache).fingerprint == first.fingerprint
    assert [file.stat().st_mtime_ns for file in files] == stamps
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert load_data(f"tinyimagenet:{blobs}", cache=cache).fingerprint == first.fingerprint
    _blob(blobs / "train_jpeg.npz", [2, 1, 0] * 20)
    assert load_data(f"tinyimagenet:{blobs}", cache=cache).fingerprint != first.fingerprint


def test_options_change_normalisation_and_augmentation(blobs: Path) -> None:
    data = load_data(f"tinyimagenet:{blobs}?mean=127&std=128,64,32&flip=false&crop=2&size=6")
    assert data.mean == (127.0,) * 3
    assert data.std == (128.0, 64.0, 32.0)
    assert (data.augment.flip, data.augment.crop) == (False, 2)
    assert data.input_shape == (3, 6, 6)


def test_a_lone_blob_file_is_divided(blobs: Path) -> None:
    data = load_data(f"npz:{blobs}/train_jpeg.npz")
    assert (len(data.train), len(data.val), len(data.test)) == (39, 6, 15)


def test_plain_arrays_may_be_channels_last_or_first_or_grey(tmp_path: Path) -> None:
    data = load_data(f"npz:{_arrays(tmp_path / 'a.npz')}")
    assert data.input_shape == (3, 6, 6)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 8)
    images = np.random.default_rng(0).normal(size=(40, 6, 6))
    grey = load_data(f"npz:{_arrays(tmp_path / 'g.npz', x_train=images, x_test=images[:8])}")
    assert grey.input_shape == (1, 6, 6)
    assert grey.train.images.dtype == torch.float32
    first = load_data(f"npz:{_arrays(tmp_path / 'f.npz', x_train=images[:, None], x_test=images[:8, None])}")
    assert torch.equal(first.train.images, grey.train.images)


def test_image_folders(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.jpg").write_bytes(_jpeg(50 + 100 * label, (12, 9)))
    data = load_data(f"imagefolder:{tmp_path}?size=8")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)
    assert data.input_shape == (3, 8, 8)
    assert torch.equal(data.test.images[:, 0, 4, 4].long(), 50 + 100 * data.test.targets)
    (tmp_path / "train" / "dog" / "3.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match=r"train/dog/3\.jpg is not a readable image"):
        load_data(f"imagefolder:{tmp_path}?size=8")
    (tmp_path / "val" / "emu").mkdir()
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"class folder .*train/emu has no images"):
        load_data(f"imagefolder:{tmp_path}?size=8")


def test_images_of_different_sizes_need_a_size(blobs: Path) -> None:
    _blob(blobs / "train_jpeg.npz", [0, 1, 2], [_jpeg(0), _jpeg(1, (9, 8)), _jpeg(2)])
    with pytest.raises(DataError, match=r"have? (9x8|8x8)") as caught:
        load_data(f"tinyimagenet:{blobs}?val=1")
    assert "size=224" in caught.value.hint


def test_functions_give_data_or_arrays(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def arrays():\n"
        "    x = np.zeros((20, 4, 4), np.uint8); x[::2] = 9\n"
        "    return {'x_train': x, 'y_train': np.arange(20) % 2, 'x_test': x, 'y_test': np.arange(20) % 2}\n"
        "def ready():\n"
        "    from hwprune.training import load_data\n"
        "    return load_data('digits')\n"
        "def wrong():\n    return 3\n"
    )
    assert load_data(f"{tmp_path}/own.py:arrays").input_shape == (1, 4, 4)
    assert load_data(f"{tmp_path}/own.py:ready").name == "digits"
    with pytest.raises(DataError, match=r"own\.py:wrong gave int"):
        load_data(f"{tmp_path}/own.py:wrong")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown data 'digit'. Did you mean 'digits'"),
        ("cfiar10:here", "unknown data 'cfiar10'. Did you mean 'cifar10'"),
        ("cifar10", "'cifar10' names no folder"),
        ("digits?trian=3", "unknown key 'trian'. Did you mean 'train'"),
        ("digits?train=0", "train=0 of the data must be at least 1"),
        ("digits?train=many", "train is 'many', not of type int"),
        ("digits?std=0", r"std=\(0.0,\) does not fit"),
    ],
)
def test_wrong_specifications_are_named(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(spec)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"x")
    with pytest.raises(DataError, match="pickles") as caught:
        load_data(f"cifar10:{tmp_path}")
    assert "npz" in caught.value.hint
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match=r"cannot read .*objects\.npz: Object arrays cannot be loaded"):
        load_data(f"npz:{tmp_path}/objects.npz")


def test_broken_files_are_named(tmp_path: Path, blobs: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent\.npz: No such file"):
        load_data(f"npz:{tmp_path}/absent.npz")
    (tmp_path / "torn.npz").write_bytes(_arrays(tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cannot read .*torn\.npz"):
        load_data(f"npz:{tmp_path}/torn.npz")
    _blob(blobs / "train_jpeg.npz", [0, 1], [_jpeg(0), b"nonsense"])
    with pytest.raises(DataError, match=r"image 1 of .*train_jpeg\.npz is not a readable image"):
        load_data(f"tinyimagenet:{blobs}")
    _blob(blobs / "train_jpeg.npz", [0, 11])
    with pytest.raises(DataError, match=r"label 11 of example 1 in .*train_jpeg\.npz is out of range 0\.\.9"):
        load_data(f"cifar10:{blobs}")
    (blobs / "val_jpeg.npz").unlink()
    with pytest.raises(DataError, match=r"has no test_jpeg\.npz or val_jpeg\.npz"):
        load_data(f"tinyimagenet:{blobs}")


def test_offsets_must_fit_the_blob(blobs: Path) -> None:
    path = blobs / "train_jpeg.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "offset": arrays["offset"] + 1})
    with pytest.raises(DataError, match="offsets do not fit the blob"):
        load_data(f"tinyimagenet:{blobs}")


def test_bad_arrays_are_named(tmp_path: Path) -> None:
    images = np.zeros((40, 6, 6))
    images[7, 2, 2] = np.nan
    cases = {
        r"example 7 in .*a\.npz \(train\) has NaN": {"x_train": images, "x_test": images[:4], "y_test": np.arange(4)},
        r"label 9 of example 3 in .*a\.npz \(test\) is out of range 0\.\.3": {"y_test": np.array([0, 1, 2, 9] * 2)},
        r"labels in .* have shape \(40, 2\)": {"y_train": np.zeros((40, 2), dtype=int)},
        r"images in .* have type int64": {"x_train": np.zeros((40, 6, 6), dtype=np.int64)},
        r"images of shape \(39, 1, 6, 6\) and targets": {"x_train": np.zeros((39, 6, 6), dtype=np.uint8)},
        "images of test and train have different shapes": {"x_test": np.zeros((8, 5, 5, 3), dtype=np.uint8)},
    }
    for message, changes in cases.items():
        path = _arrays(tmp_path / "a.npz", **changes)
        with pytest.raises(DataError, match=message):
            load_data(f"npz:{path}?classes=4")
    with np.load(_arrays(tmp_path / "a.npz")) as archive:
        np.savez(tmp_path / "b.npz", **{key: value for key, value in archive.items() if key != "y_test"})
    with pytest.raises(DataError, match=r"b\.npz has no array 'y_test'"):
        load_data(f"npz:{tmp_path}/b.npz")


def test_a_label_absent_from_training_is_an_error(tmp_path: Path) -> None:
    path = _arrays(tmp_path / "a.npz", y_test=np.array([0, 1, 2, 5] * 2))
    with pytest.raises(DataError, match=r"label 5 in the test split of a is out of range 0\.\.3"):
        load_data(f"npz:{path}")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_published_weights_reach_their_accuracy() -> None:
    data = load_data(f"cifar10:{SHARED}/cifar10-jpeg?train=16&val=16&test=1000")
    model = load_weights(load_model("resnet20"), SHARED / "weights" / "cifar10_resnet20.safetensors")
    assert 0.78 <= evaluate(model, data, "test").score <= 0.84  # 81.0 % on all 10,000; one deviation is 1.2 %


def test_a_size_of_arrays_is_a_random_subset(tmp_path: Path) -> None:
    """Arrays are often sorted by class; the first so many of them would be of one."""
    labels = np.arange(400) // 100
    images = labels[:, None, None].repeat(6, 1).repeat(6, 2).astype(np.uint8)
    path = _arrays(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = load_data(f"npz:{path}?test=40&val=30&train=60")
    assert [len(split) for split in (data.train, data.val, data.test)] == [60, 30, 40]
    for split in (data.train, data.val, data.test):
        assert set(split.targets.tolist()) == {0, 1, 2, 3}
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.targets)
    assert torch.equal(data.test.targets, load_data(f"npz:{path}?test=40").test.targets)


def test_images_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    """Pillow makes all of them white: it clips at 255."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(12):
                Image.fromarray(np.full((8, 8), 1000 * number, dtype=np.uint16)).save(folder / f"{number}.png")
    with pytest.raises(DataError, match=r"\.png has pixels of more than 8 bits \(Pillow's mode I;16\)"):
        load_data(f"imagefolder:{tmp_path}", cache=tmp_path / "cache")


def test_a_damaged_compressed_file_is_named_whatever_its_damage(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez_compressed(path, x_train=images, y_train=np.arange(40) % 4, x_test=images, y_test=np.arange(40) % 4)
    whole, random, refused = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(300):
        content = bytearray(whole)
        content[random.integers(len(content))] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(content))
        with warnings.catch_warnings(), contextlib.suppress(DataError):
            warnings.simplefilter("ignore")  # zipfile's and NumPy's, of the damage
            refused += 1
            load_data(f"npz:{path}")
            refused -= 1
    assert refused > 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=32", "size=32: arrays are not scaled"),
        ("crop=-1", "crop=-1 of the data must be at least 0"),
        ("mean=nan", "mean=.* does not fit"),
        ("std=inf", "std=.* does not fit"),
    ],
)
def test_options_that_make_no_sense_for_arrays(tmp_path: Path, options: str, message: str) -> None:
    path = _arrays(tmp_path / "a.npz")
    with pytest.raises(UsageError, match=message):
        load_data(f"npz:{path}?{options}")


def test_one_image_and_one_class_teach_nothing(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 6, 6), dtype=np.uint8), np.zeros(4, dtype=np.int64)
    path = _arrays(tmp_path / "one.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match="one has a single class: every network is right"):
        load_data(f"npz:{path}")
    with pytest.raises(DataError, match="a has one image to train on"):
        load_data(f"npz:{_arrays(tmp_path / 'a.npz')}?train=1&classes=4")


def test_digits_of_some_classes() -> None:
    data = load_data("digits?classes=5")
    assert data.classes == 5
    assert set(data.train.targets.tolist()) == set(data.test.targets.tolist()) == set(range(5))
    assert len(data.train) + len(data.val) + len(data.test) == 901
