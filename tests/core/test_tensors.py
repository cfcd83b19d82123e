"""Tensors as bytes: what they hold, what they refuse, and the way to NumPy and back."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.core.errors import UsageError
from hwprune.core.tensors import ITEM_BYTES, RawTensor, volume


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_to_numpy_and_back(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    raw = RawTensor.of(array)
    assert (raw.dtype, raw.shape, len(raw.data)) == (dtype, (2, 3, 4), 24 * ITEM_BYTES[dtype])
    np.testing.assert_array_equal(raw.array(), array)
    assert raw.array().dtype == array.dtype


def test_any_layout_and_byte_order_becomes_c_order_little_endian() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    raw = RawTensor.of(array)
    assert raw.data == b"".join(value.to_bytes(4, "little") for value in (0, 3, 1, 4, 2, 5))
    np.testing.assert_array_equal(raw.array(), array)


def test_a_scalar_has_one_element() -> None:
    assert volume(()) == 1
    assert RawTensor.of(np.float32(2.0)[()].reshape(())).array().shape == ()


def test_an_array_can_be_changed_without_changing_the_tensor() -> None:
    raw = RawTensor("uint8", (2,), b"\1\2")
    raw.array()[0] = 9
    assert raw.data == b"\1\2"


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "message"),
    [
        ("float31", (1,), b"\0" * 4, "unknown tensor type 'float31'"),
        ("float32", (2, 2), b"\0" * 15, r"has 16 bytes, not 15"),
        ("int8", (-1,), b"", r"cannot have the shape \(-1,\)"),
    ],
)
def test_refuses(dtype: str, shape: tuple[int, ...], data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RawTensor(dtype, shape, data)
