"""A user's own data and network: what is taken, and the error for everything that would be scored wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hwprune.core.errors import DataError, UsageError
from hwprune.testing.toys import toy_data
from hwprune.training import ArraySet, Classification, Data, evaluate, load_data, task_for

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.integers(0, 255, (40, 3, 8, 8), dtype=np.uint8), np.arange(40) % 2


def _load(folder: Path, expression: str, options: str = "") -> Data:
    """The data of a function that returns this, with `x`, `y` and a `Data` of them at hand."""
    np.savez(folder / "made.npz", x=X, y=Y)
    (folder / "own.py").write_text(
        "import numpy as np, torch\n"
        "from hwprune.training import ArraySet, Data\n"
        f"with np.load({str(folder / 'made.npz')!r}) as made:\n"
        "    x, y = made['x'], made['y']\n"
        "split = ArraySet(torch.from_numpy(x), torch.from_numpy(y))\n"
        f"def give():\n    return {expression}\n"
    )
    return load_data(f"{folder}/own.py:give{options}")


def _arrays(**changes: str) -> str:
    given = {"x_train": "x", "y_train": "y", "x_test": "x", "y_test": "y", **changes}
    return f"dict({', '.join(f'{key}={value}' for key, value in given.items())})"


def test_tensors_of_any_floating_type_are_taken_as_they_are(tmp_path: Path) -> None:
    tensor = "torch.from_numpy(x).bfloat16().requires_grad_()"
    data = _load(tmp_path, _arrays(x_train=tensor, x_test=tensor, y_train="torch.from_numpy(y)"))
    assert data.train.images.dtype == torch.float32
    assert not data.train.images.requires_grad
    assert torch.equal(data.test.images, torch.from_numpy(X).bfloat16().float())


@pytest.mark.parametrize("layout", ["0, 2, 3, 1", "0, 1, 2, 3"])
def test_clean_images_have_the_layout_of_the_noisy_ones(tmp_path: Path, layout: str) -> None:
    noisy, clean = f"x.transpose({layout})", f"x.transpose({layout}) / 255."
    data = _load(tmp_path, _arrays(x_train=noisy, y_train=clean, x_test=noisy, y_test=clean))
    assert torch.equal(data.test.images, torch.from_numpy(X))
    assert torch.allclose(data.test.targets, torch.from_numpy(X) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": "x / 255."}, r"images of test are torch\.float32, those of train torch\.uint8"),
        ({"y_test": "y.astype(float)"}, r"targets of test are torch\.float32, those of train torch\.int64"),
        ({"x_val": "x"}, "has an array 'x_val' and no 'y_val'"),
        ({"y_val": "y"}, "has an array 'y_val' and no 'x_val'"),
        ({"x_valid": "x", "y_valid": "y"}, "the array 'x_valid' is not read"),
        ({"x_train": "[[1], [1, 2]]"}, r"images in .*own\.py:give \(train\) are no array"),
        ({"y_train": "x / 255.", "y_test": "x[:, :, :5] / 255."}, "targets of test and train have different shapes"),
    ],
)
def test_splits_that_do_not_fit_one_another_are_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(tmp_path, _arrays(**changes))


def test_clean_images_are_on_a_scale_of_one(tmp_path: Path) -> None:
    clean = "x.astype(float)"
    data = _load(tmp_path, _arrays(y_train=clean, y_test=clean))
    with pytest.raises(DataError, match=r"targets of .* reach from 0 to 25\d; .* scale 0\.\.1"):
        task_for(data)


@pytest.mark.parametrize("option", ["flip=true", "crop=2"])
def test_images_that_are_to_be_made_are_not_moved_without_their_targets(tmp_path: Path, option: str) -> None:
    arrays = _arrays(y_train="x / 255.", y_test="x / 255.")
    assert _load(tmp_path, arrays, "?flip=false&crop=0").classes == 0
    with pytest.raises(UsageError, match=r"would move the images of .* and leave their targets where they are"):
        _load(tmp_path, arrays, f"?{option}")


def test_a_finished_data_set_takes_no_options(tmp_path: Path) -> None:
    expression = "Data('own', split, split, split, classes=2, mean=(0.,) * 3, std=(1.,) * 3)"
    assert _load(tmp_path, expression).input_shape == (3, 8, 8)
    with pytest.raises(UsageError, match="gave a Data, in which train, flip cannot be changed"):
        _load(tmp_path, expression, "?train=8&flip=true")


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (X, torch.from_numpy(Y), "images are uint8, not torch.uint8 or torch.float32"),
        (torch.from_numpy(X).double(), torch.from_numpy(Y), "images are torch.float64"),
        (torch.from_numpy(X), torch.from_numpy(Y).int(), "targets are torch.int32, not torch.int64 or torch.float32"),
        (torch.from_numpy(X), Y.tolist(), "targets are list"),
    ],
)
def test_a_split_is_made_of_tensors_of_known_types(images: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySet(images, targets)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,) * 3), ((0.0,) * 3, (1.0, 0.0, 1.0))])
def test_normalisation_must_fit_the_channels(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    split = ArraySet(torch.from_numpy(X), torch.from_numpy(Y))
    with pytest.raises(DataError, match="of own does not fit images with 3 channels"):
        Data("own", split, split, split, classes=2, mean=mean, std=std)


@pytest.mark.parametrize("targets", [torch.from_numpy(Y) - 1, torch.from_numpy(Y).float()])
def test_targets_that_are_no_classes_have_none(targets: Tensor) -> None:
    split = ArraySet(torch.from_numpy(X), targets)
    with pytest.raises(DataError, match="own has 2 classes, but targets that are floating or below 0"):
        Data("own", split, split, split, classes=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert Data("own", split, split, split, classes=0, mean=(0.0,) * 3, std=(1.0,) * 3).classes == 0


def test_image_folders_agree_on_their_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert load_data(f"imagefolder:{tmp_path}").classes == 2
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(DataError, match=r"val has class folders that .*train lacks: emu"):
        load_data(f"imagefolder:{tmp_path}")


class _Answering(nn.Module):
    """A network for toy images, of four classes, whose output is what a function makes of its features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3 if kind == "few" else 4, 1)
        self.kind = kind

    def forward(self, images: Tensor) -> object:
        features = self.features(images)
        logits = features.mean((2, 3))
        return {"few": logits, "map": features, "pair": (logits, features), "dict": {"out": logits}}[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("few", r"output has the shape \(N, 3\); 4 classes need \(N, 4\)"),
        ("map", r"output has the shape \(N, 4, 6, 6\); 4 classes need \(N, 4\)"),
        ("pair", "the network returns a tuple, not one tensor"),
        ("dict", "the network returns a dict, not one tensor"),
    ],
)
def test_an_output_that_cannot_be_scored_is_told(kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(_Answering(kind), toy_data(), task=Classification())


def test_a_denoiser_gives_an_image_of_the_same_size(tmp_path: Path) -> None:
    data = _load(tmp_path, _arrays(y_train="x / 255.", y_test="x / 255."))
    with pytest.raises(UsageError, match=r"output has the shape \(N, 3, 4, 4\), the clean images \(N, 3, 8, 8\)"):
        evaluate(nn.Conv2d(3, 3, 2, stride=2), data)
