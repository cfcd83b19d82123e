"""Labels that are no classes, and splits that are empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprune.core.errors import DataError, UsageError
from hwprune.training import load_data, task_for


def _npz(folder: Path, labels: list[int], **changes: object) -> str:
    count = len(labels)
    arrays = {"x_train": np.zeros((count, 8, 8), np.uint8), "y_train": np.array(labels)}
    arrays |= {"x_test": np.zeros((count, 8, 8), np.uint8), "y_test": np.array(labels)}
    np.savez(folder / "made.npz", **{**arrays, **changes})
    return f"npz:{folder / 'made.npz'}"


def test_labels_with_gaps_are_no_classes_unless_somebody_says_so(tmp_path: Path) -> None:
    spec = _npz(tmp_path, [1, 2, 3] * 20)
    with pytest.raises(DataError, match="no training image of made has the label 0") as caught:
        load_data(spec)
    assert "?classes=4" in caught.value.hint
    assert load_data(f"{spec}?classes=4").classes == 4


def test_a_split_without_images_is_named(tmp_path: Path) -> None:
    spec = _npz(tmp_path, [0, 1] * 20, x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="has no images"):
        load_data(spec)


def test_floating_labels_are_no_clean_images(tmp_path: Path) -> None:
    data = load_data(_npz(tmp_path, [0, 1] * 20, y_train=np.ones(40, np.float32), y_test=np.ones(40, np.float32)))
    with pytest.raises(DataError, match="neither classes nor clean images"):
        task_for(data)


@pytest.mark.parametrize("spec", ["digits:somewhere", "digits?size=3"])
def test_digits_come_as_they_are(spec: str) -> None:
    with pytest.raises(UsageError, match="digits come with scikit-learn"):
        load_data(spec)
